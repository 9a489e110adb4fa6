"""How a node learns its node rank and the address of the first node: in bash, and in the README."""

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


def start_lines(plan: Plan, command: str = "./run.sh", *, numbered: bool = False) -> str:
    """Return the README's block of what to type where, as it can be pasted.

    One line for all nodes where they find themselves in `hosts.txt`; else, and when `numbered`, one
    for each, of many the first two and the last.
    """
    hosts, named = placed(plan).hosts, not hosts_are_placeholders(plan)
    if len(hosts) == 1 or (named and not numbered):
        return f"```\n{command}\n```"
    lines = [
        f"{at_address(plan)}NODE_RANK={rank} {command}  # on {host if named else f'node {rank}'}"
        for rank, host in enumerate(hosts)
    ]
    if len(hosts) > ALL_SHOWN:
        lines[2:-1] = ["# and so on, every node with its own number, up to"]
    return "\n".join(("```", *lines, "```"))


def at_address(plan: Plan) -> str:
    """Return what a line must set first: the address of node 0, where hosts are not named."""
    unknown = hosts_are_placeholders(plan) and len(placed(plan).hosts) > 1
    return f"MASTER_ADDR={ADDRESS} " if unknown else ""


def start_notes(plan: Plan) -> list[str]:
    """Return what the README says of those lines, where there is something to fill in."""
    if not at_address(plan):
        return []
    return [
        f"The cluster lists no hosts: {ADDRESS} stands for the name or address of the node that "
        "you\nnumber 0. Planned with `--nodes-file FILE` (or `hosts:` in the cluster file), every "
        "node finds its number\nand that address by itself."
    ]


ADDRESS = "ADDRESS_OF_NODE_0"
ALL_SHOWN = 4
"""So many nodes have their lines in the README one by one."""
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
