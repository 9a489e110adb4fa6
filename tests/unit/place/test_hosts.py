import pytest

from planner.errors import SpecError
from planner.place import free_nodes, nodes_from_file, with_hosts


def test_every_gpu_is_free_by_default(cluster_of):
    free = free_nodes(cluster_of(3))
    assert free.hosts == ("node00001", "node00002", "node00003")
    assert free.healthy.shape == (3, 8)
    assert free.healthy.all()


def test_hosts_and_single_gpus_are_taken_out(cluster_of):
    free = free_nodes(cluster_of(3), ["node00002", "node00003:7,node00003:0"])
    assert free.healthy.sum(axis=1).tolist() == [8, 0, 6]
    assert free.with_gpus(6).tolist() == [0, 2]
    assert not free.healthy[2, 0]
    assert not free.healthy[2, 7]


def test_a_file_of_unhealthy_hosts_is_read(cluster_of, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_text("# broken since Monday\nnode00001:3  # ECC\n\nnode00002\n")
    free = free_nodes(cluster_of(3), [f"@{bad}"])
    assert free.healthy.sum(axis=1).tolist() == [7, 0, 8]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("node0003", "did you mean 'node00003'?"),
        ("zzz", "(node00001 to node00003)"),
        ("zzz:1", "host 'zzz' is not one of test's 3"),
        ("node00001:8", "GPU '8' is not one of node00001"),
        ("node00001:-1", "GPU '-1'"),
        ("node00001:x", "numbered 0 to 7"),
        ("node00001:²", "GPU '²'"),
        ("@/no/such/file", "/no/such/file: cannot be read (No such file or directory)"),
    ],
)
def test_what_does_not_exist_is_refused(cluster_of, word, said):
    with pytest.raises(SpecError) as error:
        free_nodes(cluster_of(3), [word])
    assert said in str(error.value)


def test_a_file_with_an_unknown_host_names_its_line(cluster_of, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_text("node00001\nnode00009\n")
    with pytest.raises(SpecError, match=r"bad.txt, line 2: host 'node00009'"):
        free_nodes(cluster_of(3), [f"@{bad}"])


def test_a_line_may_hold_several_hosts_and_brackets(tmp_path):
    listed = tmp_path / "hosts"
    listed.write_text("rack[1-2]n[09-10], login1 x\nb\n")
    rack = ["rack1n09", "rack1n10", "rack2n09", "rack2n10"]
    assert nodes_from_file(listed) == [*rack, "login1", "x", "b"]


def test_hosts_listed_in_a_file_fill_the_leafs_in_order(cluster_of, tmp_path):
    listed = tmp_path / "hosts"
    listed.write_text("gpu-b.example\n# spare\ngpu-a.example\ngpu_c\n")
    cluster = with_hosts(cluster_of(64, per_leaf=2), nodes_from_file(listed))
    assert free_nodes(cluster).hosts == ("gpu-b.example", "gpu-a.example", "gpu_c")
    assert [cluster.leaf_of(n) for n in range(3)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\nb\na\n", "line 3: host 'a' is already on line 1"),
        ("a\n$(reboot)\n", "line 2: '$(reboot)' is not a hostname"),
        ("a[1-\n", "line 1: brackets do not match in 'a[1-'"),
        ("a[3-1]\n", "line 1: range '3-1' in 'a[3-1]' runs backwards"),
        ("a[1-3]\na2\n", "line 2: host 'a2' is already on line 1"),
        ("-o\n", "'-o' is not a hostname"),
        ("# nothing\n\n", "names no host"),
    ],
)
def test_a_bad_host_file_is_refused(tmp_path, text, said):
    listed = tmp_path / "hosts"
    listed.write_text(text)
    with pytest.raises(SpecError) as error:
        nodes_from_file(listed)
    assert said in str(error.value)


def test_a_host_file_that_is_not_text_is_refused(tmp_path):
    listed = tmp_path / "hosts"
    listed.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not UTF-8"):
        nodes_from_file(listed)


def test_one_name_for_two_nodes_is_refused(cluster_of):
    with pytest.raises(SpecError, match="two nodes have the name 'a'"):
        free_nodes(with_hosts(cluster_of(3), ["b", "a", "a"]))


@pytest.mark.parametrize("host", ["a b", "", "a;reboot", "a:0", "@a", "a" * 254])
def test_what_is_no_hostname_is_refused(cluster_of, host):
    with pytest.raises(SpecError, match="is not a hostname"):
        free_nodes(with_hosts(cluster_of(2), ["ok", host]))
