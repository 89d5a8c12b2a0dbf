"""Does every machine file keep its promise: sourced numbers, levels that nest, sane units?

And is a file that does not refused by name?
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from armillary import machines
from armillary.machines.sourced import DATA, pages, read_toml
from armillary.machines.telling import numbers
from armillary.spec import Machine, SpecError

ASKED = [
    "aurora", "polaris", "alps", "frontier", "lumi_g", "perlmutter", "leonardo_booster",
    "jupiter_booster", "summit", "blue_waters", "selene", "eos", "el_capitan", "fugaku",
    "meta_rsc", "meta_24k", "eagle", "dgx_a100", "dgx_h100", "dgx_b200", "gb200_nvl72",
    "tpu_v4_pod", "tpu_v5p_pod", "tpu_v5e_pod", "laptop_2core",
]  # fmt: skip
# What real machines keep to, by the end of a number's path: least, most.
SANE = {
    r"peak_flops_per_s\.\w+$": (1e9, 1e17),
    r"device\.memory_bytes$": (5e9, 400e9),
    r"device\.memory_bytes_per_s$": (1e9, 2e13),
    r"link_bytes_per_s$": (1e8, 2e12),
    r"pair_bytes_per_s$": (1e9, 2e12),
    r"nic_bytes_per_s$": (1e9, 2e11),
    r"latency_s$": (1e-7, 2e-4),
    r"taper$": (1.0, 10.0),
    r"device\.power_w$": (50, 2000),
    r"node_power_w$": (100, 30_000),
    r"pue$": (1.0, 2.0),
    r"device_hours_between$": (1e3, 1e7),
    r"storage\.\w+_bytes_per_s$": (1e9, 1e14),
}


@pytest.fixture(params=machines.names())
def machine(request: pytest.FixtureRequest) -> Machine:
    return machines.load(str(request.param))


def test_what_was_asked_for_is_there() -> None:
    assert [name for name in ASKED if name not in machines.names()] == []


def test_every_number_has_a_source_or_says_that_it_is_a_bound(machine: Machine) -> None:
    told = {**machine.sources, **machine.unknown}
    assert [path for path, _ in numbers(machine) if path not in told] == []
    assert set(machine.sources) & set(machine.unknown) == set()
    assert [path for path, words in told.items() if len(words) < 4 or "[" in words] == []


def test_what_is_not_known_says_where_it_could_come_from(machine: Machine) -> None:
    values = dict(numbers(machine))
    for path, sentence in machine.unknown.items():
        assert sentence.startswith("not known; it could come from "), path
        if path in values:
            assert "stands in its place: " in sentence, path


def test_levels_multiply_up_to_the_machine(machine: Machine) -> None:
    sizes = [level.num_ranks for level in machine.levels]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == machine.num_ranks == machine.num_nodes * machine.ranks_per_node
    for below, level in pairwise(sizes[:-1]):
        assert level % below == 0


def test_ranks_share_the_adapters_of_their_node(machine: Machine) -> None:
    node = machine.nics_per_node * machine.nic_bytes_per_s
    for level in machine.levels:
        if level.num_ranks > machine.ranks_per_node and level.network in ("dragonfly", "fat_tree"):
            assert level.link_bytes_per_s * machine.ranks_per_node == pytest.approx(node)


def test_links_are_slower_farther_out(machine: Machine) -> None:
    rates = [level.link_bytes_per_s for level in machine.levels]
    assert rates == sorted(rates, reverse=True)


def test_numbers_are_in_their_units(machine: Machine) -> None:
    outside = []
    for path, value in numbers(machine):
        for pattern, (least, most) in SANE.items():
            if re.search(pattern, path) and not least <= value <= most:
                outside.append((path, value))
    assert outside == []


def test_memory_is_faster_than_links_and_peaks_rise_as_numbers_shorten(machine: Machine) -> None:
    device = machine.device
    assert device.memory_bytes_per_s > max(level.link_bytes_per_s for level in machine.levels) / 2
    peaks = [
        device.peak_flops_per_s.get(name, 0.0)
        for name in ("float32", "tf32", "bfloat16", "float8", "float4")
    ]
    known = [rate for rate in peaks if rate]
    assert known == sorted(known)


def test_a_machine_is_a_document(machine: Machine) -> None:
    assert Machine.from_json(machine.to_json()) == machine


def test_every_device_is_of_a_machine_and_every_fit_exists() -> None:
    for path in (DATA / "devices").glob("*.toml"):
        values = read_toml(path)
        if "usual_machine" in values:
            usual = machines.load(values["usual_machine"])
            for name in values["known_as"]:
                assert machines.find_device(name) == usual
            assert usual.device.name == path.stem
        if "fit" in values:
            assert (DATA / "fits" / f"{values['fit']}.toml").is_file(), path.name


def test_measured_collectives_are_not_lent_to_other_links() -> None:
    assert machines.load("dgx_h100").levels[0].collectives
    assert not machines.load("hgx_h800").levels[0].collectives
    assert not machines.load("polaris").levels[0].collectives
    for name in machines.names():
        for level in machines.load(name).levels:
            for fits in level.collectives.values():
                assert max(fit.bytes_per_s for fit in fits) < 1.2 * level.link_bytes_per_s, name


def test_every_page_is_cited() -> None:
    files = [*DATA.glob("*.toml"), *(DATA / "devices").glob("*.toml")]
    files += [DATA / "sources" / "efficiency.toml", DATA / "sources" / "defaults.toml"]
    text = "".join(path.read_text() for path in files)
    assert [tag for tag in pages() if f"[{tag}]" not in text] == []


def test_the_networks_of_the_levels_exist() -> None:
    networks = pytest.importorskip("armillary.networks")
    known = set(networks.discover())
    used = {level.network for name in machines.names() for level in machines.load(name).levels}
    assert used <= known


# ------------------------------------------------------------------------------ published facts
def test_aurora_and_frontier_are_what_their_sites_say() -> None:
    aurora, frontier = machines.load("aurora"), machines.load("frontier")
    assert (aurora.num_ranks, frontier.num_ranks) == (127_488, 78_848)
    links = {level.name: level.link_bytes_per_s for level in aurora.levels}
    assert links["package"] == 185e9
    assert links["group"] == links["machine"] == pytest.approx(8 * 25e9 / 12)
    assert aurora.levels[1].shape["pair_bytes_per_s"] == 15e9
    assert [level.num_ranks for level in frontier.levels] == [2, 8, 8 * 128, 78_848]
    assert frontier.levels[-1].link_bytes_per_s == pytest.approx(4 * 25e9 / 8)
    assert frontier.levels[-1].taper == pytest.approx(512 / (73 * 4), abs=1e-3)


# --------------------------------------------------------------------------------- bad files
GOOD = (DATA / "sources" / "template.toml").read_text()


def written(folder: Path, text: str) -> Path:
    path = folder / "ours.toml"
    path.write_text(text)
    return path


def test_the_template_is_a_machine(tmp_path: Path) -> None:
    assert machines.template() == GOOD
    machine = machines.load(written(tmp_path, GOOD))
    assert (machine.name, machine.num_ranks) == ("ours", 32)
    assert machine.price.usd_per_device_hour == 2.0


@pytest.mark.parametrize(
    ("old", "new", "where", "says"),
    [
        ('num_nodes = { value = 4, source = "our own count" }', "num_nodes = 4", "num_nodes", ""),
        ('num_nodes = { value = 4, source = "our own count" }', "", "num_nodes", "not given"),
        ("{ value = 4, source", "{ value = -4, source", "num_nodes", "-4"),
        ("{ value = 4, source", "{ value = 'four', source", "num_nodes", "four"),
        ("{ value = 4, source", "{ value = 4.5, source", "num_nodes", "4.5"),
        ("{ value = 4, source", "{ value = nan, source", "num_nodes", "nan"),
        ('{ value = 4, source = "our own count" }', "{ value = 4 }", "num_nodes", "value"),
        ('"our own count"', '"[nobody]"', "num_nodes", "nobody"),
        ('device = "h100_sxm_80"', 'device = "h100_sxm_8"', "device", "h100_sxm_8"),
        ("latency_s = { value = 0.6e-6", "latencys = { value = 0.6e-6", "latency", ""),
        ('network = "switch"\n', "", "network", ""),
        ("num_nodes = { value = 1,", "num_nodes = { value = 9,", "levels", "72 in the level below"),
        ("[host]", "[hosts]", "hosts", "unknown key"),
        ("[host]", "[host", "ours.toml", "not TOML"),
    ],
)
def test_a_bad_file_is_refused_by_name(
    tmp_path: Path, old: str, new: str, where: str, says: str
) -> None:
    assert old in GOOD
    with pytest.raises(SpecError) as caught:
        machines.load(written(tmp_path, GOOD.replace(old, new, 1)))
    assert where in caught.value.where
    assert says in caught.value.found
    assert caught.value.fix


def test_a_number_that_is_missing_is_named_with_where_it_could_come_from(tmp_path: Path) -> None:
    text = GOOD.replace(
        'latency_s = { value = 2.7e-6, source = "NCCL src/graph/tuning.cc, LL" }',
        'latency_s = { from = "a ping-pong" }',
    )
    with pytest.raises(SpecError) as caught:
        machines.load(written(tmp_path, text))
    assert "latency_s" in caught.value.where
    assert "a ping-pong" in caught.value.found


def test_a_bound_stands_in_the_place_of_what_is_not_known(tmp_path: Path) -> None:
    text = GOOD.replace(
        'latency_s = { value = 2.7e-6, source = "NCCL src/graph/tuning.cc, LL" }',
        'latency_s = { bound = 9e-6, from = "a ping-pong", because = "errs to slow" }',
    )
    machine = machines.load(written(tmp_path, text))
    assert machine.levels[-1].latency_s == 9e-6
    assert "errs to slow" in machine.unknown["levels.machine.latency_s"]


def test_a_device_of_ones_own(tmp_path: Path) -> None:
    own = """
[device]
name = "mine"
like = "h100_sxm_80"
memory_bytes = { value = 64e9, source = "nvidia-smi" }
[device.peak_flops_per_s]
bfloat16 = { value = 5e14, source = "the datasheet" }
[device.efficiency]
matmul_fraction = 0.5
relative_error = 0.1
source = "our own timed products"
"""
    machine = machines.load(written(tmp_path, GOOD.replace('device = "h100_sxm_80"', "") + own))
    assert machine.device.name == "mine"
    assert machine.device.memory_bytes == 64_000_000_000
    assert machine.device.peak("bfloat16") == 5e14
    assert machine.device.efficiency.matmul_fraction == 0.5
    assert machine.sources["device.efficiency"] == "our own timed products"


@pytest.mark.parametrize("name", ["auroa", "", "no/such/file.toml"])
def test_an_unknown_machine_is_refused(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        machines.load(name)
    if name == "auroa":
        assert "aurora" in caught.value.fix


def test_a_peak_that_is_not_known_is_refused() -> None:
    with pytest.raises(SpecError, match="float16"):
        machines.load("summit").device.peak("bfloat16")
