"""Pipeline schedules as orders of actions, and a simulator that runs any of them."""
