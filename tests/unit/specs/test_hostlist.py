import pytest

from planner.specs.hostlist import MOST_HOSTS, expand


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", "a"),
        ("tux[0-3,12]", "tux0 tux1 tux2 tux3 tux12"),
        ("n[08-10]", "n08 n09 n10"),
        ("n[8-10]", "n8 n9 n10"),
        ("n[8-10,3].dc1", "n8.dc1 n9.dc1 n10.dc1 n3.dc1"),
        ("r[1-2]n[01-02]", "r1n01 r1n02 r2n01 r2n02"),
        ("a, b[1,2]\tc\n", "a b1 b2 c"),
        ("", ""),
    ],
)
def test_expressions_expand_as_slurm_does(text, hosts):
    assert expand(text) == hosts.split()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a[1-3", "do not match"),
        ("a]1[", "do not match"),
        ("a[[1]]", "do not match"),
        ("a[3-1]", "runs backwards"),
        ("a[x-y]", "not a number or a range"),
        ("a[1--3]", "not a number or a range"),
        ("a[]", "not a number or a range"),
        ("a[1-999999999]", "more than"),
        ("a[1-9999][1-9999]", "more than"),
        ("a[0-200000],b[0-200000]", "more than"),
        ("a[1-1111111111]", "not a number or a range"),
        ("$(reboot)", "not a hostname"),
        ("[1-2]-x,-x", "not a hostname"),
    ],
)
def test_what_is_no_expression_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        expand(text)


def test_the_longest_list_is_made():
    assert len(expand(f"n[1-{MOST_HOSTS}]")) == MOST_HOSTS
