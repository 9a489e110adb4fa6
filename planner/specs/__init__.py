"""What the user gives: a model, a cluster and a workload, checked before anything is computed."""
