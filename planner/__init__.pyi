"""What type checkers see of the package; a test holds it to `planner/__init__.py`."""

from planner.errors import InfeasibleError as InfeasibleError
from planner.errors import PlannerError as PlannerError
from planner.errors import SpecError as SpecError
from planner.explanation import Explanation as Explanation
from planner.library import explain as explain
from planner.library import place as place
from planner.library import plan as plan
from planner.plan import Estimate as Estimate
from planner.plan import Layout as Layout
from planner.plan import Placement as Placement
from planner.plan import Plan as Plan
from planner.plan import RankedPlan as RankedPlan
from planner.specs.catalog import load_cluster as load_cluster
from planner.specs.catalog import load_model as load_model
from planner.specs.cluster import ClusterSpec as ClusterSpec
from planner.specs.model import ModelSpec as ModelSpec

__version__: str
