"""What Slurm's topology files say, read by hand from the same text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import SpecError
from planner.topology import slurm_leafs

TREE = """
# three tiers, written in no order
SwitchName=core Switches=spine[1-2]
switchname=s1 NODES=gpu[01-02] LinkSpeed=400
SwitchName=s2 Nodes=gpu[05,06]   # a comment
SwitchName=s3 Nodes=gpu03,\\
gpu04
SwitchName=s4 Nodes=gpu[07-08]
SwitchName=spine1 Switches=s[1,3]
SwitchName=spine2 Switches=s2,s4
"""

BLOCKS = """
BlockName=b1 Nodes=n[1-4]
BlockName=b2 Nodes=n[5-8]
BlockName=b3 Nodes=n[9-12]
BlockName=b4 Nodes=n[13-16]
BlockSizes=4,8
"""

YAML = """
- topology: flat
  flat: true
- topology: other
  block:
    block_sizes: [2]
    blocks:
      - {block: x, nodes: "other[1-2]"}
- topology: main
  cluster_default: True
  tree:
    switches:
      - switch: top
        children: leaf[1-2]
      - switch: leaf1
        nodes: gpu[01-02]
      - switch: leaf2
        nodes: gpu03
"""


def told(text):
    return [(leaf.name, leaf.pod, " ".join(leaf.hosts)) for leaf in slurm_leafs(text, "t.conf")]


def test_a_tree_gives_leafs_and_the_switch_above_as_pod():
    assert told(TREE) == [
        ("s1", "spine1", "gpu01 gpu02"),
        ("s3", "spine1", "gpu03 gpu04"),
        ("s2", "spine2", "gpu05 gpu06"),
        ("s4", "spine2", "gpu07 gpu08"),
    ]


def test_leafs_without_a_switch_above_are_one_pod():
    assert told("SwitchName=a Nodes=n1\nSwitchName=b Nodes=n2") == [
        ("a", "", "n1"),
        ("b", "", "n2"),
    ]


def test_blocks_pair_up_to_the_largest_block_size():
    assert [row[:2] for row in told(BLOCKS)] == [
        ("b1", "blocks0"),
        ("b2", "blocks0"),
        ("b3", "blocks1"),
        ("b4", "blocks1"),
    ]
    alone = BLOCKS.replace("BlockSizes=4,8", "BlockSizes=4")
    assert {row[1] for row in told(alone)} == {"blocks0"}
    assert told(alone)[3][2] == "n13 n14 n15 n16"


def test_the_default_topology_of_a_yaml_file_is_read():
    assert told(YAML) == [("leaf1", "top", "gpu01 gpu02"), ("leaf2", "top", "gpu03")]
    unmarked = YAML.replace("cluster_default: True", "cluster_default: False")
    assert told(unmarked) == [("x", "blocks0", "other1 other2")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "describes no switch"),
        ("# nothing\n", "describes no switch"),
        ("hello", "neither topology.conf lines nor a topology.yaml list"),
        ("- topology: a\n  flat: true\n", "no tree and no block"),
        ("- topology: a\n  tree: {switches: 3}\n", "'switches' must be a list"),
        ("- topology: a\n  tree: {switches: [{nodes: n1}]}\n", "lacks 'switch'"),
        ("- topology: a\n  block: {block_sizes: x, blocks: [{block: b, nodes: n}]}\n", "size 'x'"),
        ("SwitchName=a", "'a' has neither nodes nor switches"),
        ("SwitchName=a Nodes=n1 Switches=b", "both nodes and switches"),
        ("SwitchName=a Nodes=n1\nSwitchName=a Nodes=n2", "switch 'a' is described twice"),
        ("SwitchName=a Nodes=n1\nSwitchName=b Nodes=n1", "host 'n1' is under two leafs"),
        ("SwitchName=a Switches=b\nSwitchName=c Nodes=n1", "no switch is named 'b'"),
        ("SwitchName=a Switches=b\nSwitchName=b Switches=a", "no switch has nodes"),
        (
            "SwitchName=a Switches=b\nSwitchName=b Switches=a\nSwitchName=c Nodes=n",
            "is below itself",
        ),
        (
            "SwitchName=a Switches=c\nSwitchName=b Switches=c\nSwitchName=c Nodes=n",
            "'c' is below 'a' and 'b'",
        ),
        ("SwitchName=a Nodes=n[1-", "brackets do not match"),
        ("SwitchName=a Node=n1", "'Node' is not known"),
        ("SwitchName=a Nodes=n1 n2", "'n2' is not KEY=VALUE"),
        ("LinkSpeed=4\nSwitchName=a Nodes=n", "names no switch and no block"),
        ("RingName=r Nodes=n[1-4]", "'RingName' is not known"),
        ("SwitchName=a Nodes=n1\nBlockName=b Nodes=n2", "both switches and blocks"),
        ("BlockName=b Nodes=n1\nBlockName=b Nodes=n2", "block 'b' is described twice"),
        ("BlockName=b", "names no node"),
        ("BlockSizes=4", "describes no block"),
        ("BlockName=b Nodes=n1\nBlockSizes=0,4", "block size '0'"),
        (f"SwitchName={'a' * 65} Nodes=n1", "longer than 64"),
        (f"BlockName={'a' * 300} Nodes=n1", "longer than 64"),
    ],
)
def test_what_is_no_topology_is_refused_with_its_file(text, said):
    with pytest.raises(SpecError) as error:
        slurm_leafs(text, "t.conf")
    assert said in str(error.value)
    assert error.value.message.startswith("t.conf")


WORDS = [
    "SwitchName=",
    "BlockName=",
    "Nodes=",
    "Switches=",
    "BlockSizes=",
    "a[1-",
    "3]",
    "a,b",
    " ",
]
WORDS += [
    "\n",
    "\\\n",
    "#",
    "=",
    "- topology: x\n",
    "  tree:\n",
    "    switches: ",
    "[{",
    "}]",
    ":",
    "-",
]


@given(st.lists(st.sampled_from(WORDS), max_size=14).map("".join))
def test_any_text_is_read_or_refused(text):
    try:
        leafs = slurm_leafs(text, "t.conf")
    except SpecError:
        return
    assert all(leaf.hosts for leaf in leafs)
