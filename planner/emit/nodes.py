"""How a script on a node learns its node rank and the address of the first node, in bash."""

from __future__ import annotations

from planner.emit.base import hosts_are_placeholders, placed
from planner.plan import Plan


def node_text(plan: Plan) -> str:
    """Return bash lines that set NODE_RANK and MASTER_ADDR where they are not set.

    The lines look for `hosts.txt` in `$HERE`.
    """
    hosts = placed(plan).hosts
    if len(hosts) == 1:
        return 'NODE_RANK=0\nMASTER_ADDR="${MASTER_ADDR:-127.0.0.1}"\n'
    if hosts_are_placeholders(plan):
        return """\
# The cluster file lists no hosts, so the names in hosts.txt say nothing about this node.
: "${NODE_RANK:?set NODE_RANK to the number of this node, from 0}"
: "${MASTER_ADDR:?set MASTER_ADDR to the address of node 0}"
"""
    return FIND_NODE


FIND_NODE = """\
# The number of this node is its line in hosts.txt; a domain that one of the names lacks is ignored.
mapfile -t HOSTS < "$HERE/hosts.txt"
MASTER_ADDR="${MASTER_ADDR:-${HOSTS[0]}}"
if [[ -z "${NODE_RANK:-}" ]]; then
  name="${MESHWRIGHT_HOSTNAME:-$HOSTNAME}"
  name="${name,,}"
  same=() short=()
  for i in "${!HOSTS[@]}"; do
    host="${HOSTS[i],,}"
    if [[ "$host" == "$name" ]]; then
      same+=("$i")
    elif [[ "${host%%.*}" == "${name%%.*}" && ("$host" != *.* || "$name" != *.*) ]]; then
      short+=("$i")
    fi
  done
  [[ ${#same[@]} -gt 0 ]] || same=(${short[@]+"${short[@]}"})
  if [[ ${#same[@]} -ne 1 ]]; then
    echo "run.sh: ${#same[@]} lines of hosts.txt name this host ('$name'); set NODE_RANK" >&2
    exit 2
  fi
  NODE_RANK="${same[0]}"
fi
"""
