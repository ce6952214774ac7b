"""The traffic and time model: operations are those counted elsewhere, bytes those of the design's table, times follow."""

import json

import pytest

from cct.cli import main
from cct.models import count_macs, create_model
from cct.reports import roofline, traffic

# MB moved per image in training, bfloat16 (the design's targets.md), and how far each may be off: its last two are estimates of
# kernels that did not exist, ours count what these kernels read and write. "compiled" of CCT-2 leaves the convolved images out.
TABLE = {
    "cct_7_3x1_32": {"eager": 101, "compiled": 79, "ops": 40, "least": 21},
    "cct_14_7x2_224": {"eager": 268, "compiled": 210, "ops": 103, "least": 50},
    "cct_2_3x2_32": {"eager": 5.3, "ops": 1.5, "least": 0.95},
}
TOLERANCE = {"eager": 0.05, "compiled": 0.05, "ops": 0.2, "least": 0.2}
SMALL_TOLERANCE = {"eager": 0.05, "ops": 0.35, "least": 0.35}


@pytest.mark.parametrize("name", TABLE)
def test_traffic_of_the_table(name):
    tolerance = SMALL_TOLERANCE if name == "cct_2_3x2_32" else TOLERANCE
    found = roofline.report(create_model(name))["training"]
    for way, megabytes in TABLE[name].items():
        assert found[way]["total"].megabytes == pytest.approx(megabytes, rel=tolerance[way]), way
    sizes = [found[way]["total"].megabytes for way in traffic.WAYS]
    assert sizes == sorted(sizes, reverse=True)


def test_what_is_said_to_run_where():
    """roofline.WHERE names the limits that the tables of the kernels have."""
    pytest.importorskip("triton")
    from cct_kernels.triton import layernorm_mlp, row_segment

    wide = {arch: max(table["forward"], default=0) for arch, table in row_segment.CONFIGS.items() if table}
    assert wide == {"sm_90": 256, "sm_100": 256} and row_segment.BYTES == (2,)
    assert {max(table) for table in layernorm_mlp.FORWARD.values()} == {256}
    assert {max(table) for table in layernorm_mlp.BACKWARD.values()} == {128, 256}
    assert "at most 256 channels on Hopper and Blackwell" in roofline.WHERE and "up to 128 to 256" in roofline.WHERE


@pytest.mark.parametrize("name", ["cct_7_3x1_32", "cct_14_7x2_224", "cct_2_3x2_32", "vit_lite_7_4_32", "cvt_7_8_32"])
def test_operations_are_twice_the_macs(name):
    model = create_model(name)
    forward = 2 * count_macs(model).full / 1e9
    found = roofline.report(model)
    for way in traffic.WAYS:
        assert found["forward"][way]["total"].gflop == pytest.approx(forward, rel=1e-9)
        recomputed = way in traffic.FUSED  # fc1 once more
        ratio = found["training"][way]["total"].gflop / forward
        assert 2.9 < ratio < 3.4 if recomputed else 2.9 < ratio < 3.15


def test_ten_activations_a_layer_and_two_kernels():
    """The encoder's forward pass, in a layer that is neither first nor last; eager moves about three times as much."""
    found, activation = {}, 256 * 256 * 2
    for way in traffic.WAYS:
        every = traffic.kernels(create_model("cct_7_3x1_32"), way, training=False)
        layer = [kernel for kernel in every if kernel.part == "layer 3"]
        found[way] = sum(kernel.bytes for kernel in layer) / activation, sum(kernel.launches for kernel in layer)
    assert found == {"eager": (30, 10), "compiled": (28, 8), "ops": (13, 4), "encoder": (10, 2), "least": (10, 2)}


def test_times_are_the_longer_of_two_bounds_and_of_the_launches():
    device = roofline.Device(bfloat16=100e12, float32=10e12, bytes=1e12, source="")
    products = traffic.Kernel("part", "name", bytes=1e6, flops=1e9, weights=5e6)
    assert roofline.seconds(products, device, device.bfloat16, 10) == pytest.approx(1e10 / 1e14)
    assert roofline.seconds(products._replace(flops=1e6), device, device.bfloat16, 10) == pytest.approx(15e6 / 1e12)
    assert roofline.seconds(traffic.Kernel("part", "tiny", 1.0, launches=3), device, 1e14, 1) == 3 * traffic.LAUNCH
    model = create_model("cct_2_3x2")
    slow, fast = (roofline.report(model, d, batch=64)["forward"]["ops"]["total"] for d in (device, roofline.DEVICES["H200"]))
    assert slow.milliseconds > fast.milliseconds and slow.megabytes == fast.megabytes
    half = roofline.report(model, dtype="float32")["forward"]["ops"]["total"].megabytes
    assert half == pytest.approx(2 * roofline.report(model)["forward"]["ops"]["total"].megabytes, rel=0.1)


def test_command(capsys):
    assert main(["info", "cct_7_3x1", "--roofline", "--batch-size", "64", "--device", "rtx4090"]) == 0
    text = capsys.readouterr().out
    assert "165.2 TFLOP/s, 1008 GB/s (NVIDIA Ada GPU architecture paper" in text
    assert "each of layers 2-6" in text and "images/s at most" in text and "training, batch 64" in text
    assert main(["info", "cct_2_3x2", "--roofline", "--json", "--device", "1.01:32", "--dtype", "float32"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["flops"] == 1.01e12 and values["bytes"] == 32e9
    assert set(values["training"]) == set(traffic.WAYS) and values["forward"]["eager"]["total"]["launches"] > 20


@pytest.mark.parametrize(("arguments", "message"), [
    (["cct_7_3x1", "--device", "H300"], "device: got 'H300', expected one of H200, H100"),
    (["cct_7_3x1", "--batch-size", "0"], "batch_size: got 0, expected at least 1"),
    (["text_cct_2"], "reads text; expected an image model"),
])  # fmt: skip
def test_bad_arguments(capsys, arguments, message):
    assert main(["info", *arguments, "--roofline"]) == 2
    assert message in capsys.readouterr().err
