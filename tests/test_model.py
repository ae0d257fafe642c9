"""Reading and writing ONNX files: every kind of bad input gives one clear line that names the file."""

from __future__ import annotations

import errno
import os
import random

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from xnorc import golden
from xnorc.errors import InputError, ModelError, XnorcError
from xnorc.model import newest_opset, prepare, read_model, save_model, source_names


def parse(text: str, opset: int = 18, ir: int = 10, more: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}{more}]>\n{text}')


def write(folder, model: onnx.ModelProto | bytes, name: str = "m.onnx") -> str:
    path = folder / name
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return str(path)


def refused(path, shapes=None) -> str:
    """The message of the refusal: one line that starts with the path."""
    with pytest.raises(ModelError) as caught:
        read_model(path, shapes)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


GOOD = "g (float[1,3] x) => (float[1,3] y) { y = Relu (x) }"
DYNAMIC = "g (float[batch,3,H,W] x) => (float[batch,3,H,W] y) { y = Relu (x) }"


def with_weight(value: np.ndarray, node: str = "y = Mul (x, w)", shape: str = "2,3") -> onnx.ModelProto:
    model = parse(f"g (float[{shape}] x) => (float[n,m] y) {{ [reader] {node} }}")
    model.graph.initializer.append(numpy_helper.from_array(value, "w"))
    return model


class TestFiles:
    def test_missing(self, tmp_path):
        assert "no such file" in refused(str(tmp_path / "none.onnx"))

    def test_directory(self, tmp_path):
        assert "is a directory" in refused(str(tmp_path))

    def test_empty(self, tmp_path):
        assert "is not an ONNX model" in refused(write(tmp_path, b""))

    @pytest.mark.parametrize(
        "data",
        [b"PK\x03\x04 not a model", b"{}", b"\x00" * 100, random.Random(0).randbytes(64) + b"\xff" * 8],
        ids=["zip", "text", "zeros", "noise"],
    )
    def test_not_onnx(self, tmp_path, data):
        assert "is not" in refused(write(tmp_path, data))

    @pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
    def test_truncated(self, tmp_path, keep):
        data = with_weight(np.ones((200, 300), np.float32), "y = MatMul (x, w)", "2,200").SerializeToString()
        assert "truncated" in refused(write(tmp_path, data[: int(len(data) * keep)]))

    def test_text_that_is_not_utf8(self, tmp_path):
        data = parse("g (float[1] x) => (float[1] y) { [somename] y = Relu (x) }").SerializeToString()
        assert "is not text" in refused(write(tmp_path, data.replace(b"somename", b"some\xff\xfeme")))

    def test_line_break_in_a_name(self, tmp_path):
        model = parse("g (float[1] x) => (float[1] y) { y = Relu (x) }")
        model.graph.node[0].op_type = "Re\nlu"
        assert "unknown operator 'Re lu'" in refused(write(tmp_path, model))

    def test_any_damage_is_refused_in_one_line_or_harmless(self, tmp_path):
        data = with_weight(np.ones((3, 4), np.float32), "y = MatMul (x, w)").SerializeToString()
        rng = np.random.default_rng(0)
        for _ in range(300):
            damaged = bytearray(data)
            for at in rng.integers(0, len(data), 2):
                damaged[at] = rng.integers(0, 256)
            path = write(tmp_path, bytes(damaged))
            try:
                read_model(path)
            except ModelError as error:
                assert "\n" not in str(error)

    def test_no_graph(self, tmp_path):
        model = onnx.ModelProto(ir_version=10)
        model.opset_import.add(version=18)
        assert "no graph" in refused(write(tmp_path, model))

    def test_above_two_gib(self, tmp_path):
        path = tmp_path / "large.onnx"
        with path.open("wb") as file:
            file.truncate(2**31 + 1)  # sparse: takes no space
        assert "2.0 GiB" in refused(str(path))

    def test_unreadable(self, tmp_path, monkeypatch):
        path = write(tmp_path, parse(GOOD))

        def denied(self):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr("pathlib.Path.read_bytes", denied)
        assert "Permission denied" in refused(path)


class TestVersions:
    def test_opset_too_old(self, tmp_path):
        assert "opset 6" in refused(write(tmp_path, parse(GOOD, 6)))

    def test_opset_too_new(self, tmp_path):
        text = refused(write(tmp_path, parse(GOOD, newest_opset() + 1)))
        assert f"at most {newest_opset()}" in text

    def test_no_standard_opset(self, tmp_path):
        model = parse(GOOD)
        model.opset_import[0].domain = "other"
        assert "imports none" in refused(write(tmp_path, model))

    @pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 18, 21])
    def test_every_opset_in_between_is_read_and_computes_the_same(self, tmp_path, opset):
        model = parse(
            "g (float[2,3] x) => (float[2,3] y) { [a] t = Relu (x)\n [b] y = Softmax <axis = 1> (t) }", opset, 8
        )
        model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'act', 'relu']")
        read = read_model(write(tmp_path, model))
        assert read.opset_import[0].version == max(opset, 18)
        assert read.ir_version == 10
        assert source_names(read) == {"a": "act"}
        x = {"x": np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)}
        np.testing.assert_allclose(golden.run(read, x)["y"], golden.run(model, x)["y"], rtol=1e-6)

    def test_what_cannot_be_converted(self, tmp_path, monkeypatch):
        def fails(model, version):
            raise RuntimeError("no adapter\nfor Thing")

        monkeypatch.setattr("onnx.version_converter.convert_version", fails)
        text = refused(write(tmp_path, parse(GOOD, 13)))
        assert "from opset 13 to 18: no adapter for Thing; export it with opset 18" in text

    def test_a_conversion_that_changes_the_model(self, tmp_path, monkeypatch):
        other = parse("g (float[1,3] x) => (float[1,3] y) { y = Neg (x) }")
        monkeypatch.setattr("onnx.version_converter.convert_version", lambda model, version: other)
        assert "output 'y' is another one" in refused(write(tmp_path, parse(GOOD, 13)))

    def test_weights_listed_as_inputs_are_no_inputs(self, tmp_path):
        model = with_weight(np.ones(3, np.float32))
        model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
        assert [info.name for info in read_model(write(tmp_path, model)).graph.input] == ["x"]


class TestOperators:
    def test_unknown_operator_names_the_node_and_near_names(self, tmp_path):
        text = refused(write(tmp_path, parse("g (float[1] x) => (float[1] y) { [act] y = Rellu (x) }")))
        assert "node 'act'" in text
        assert "near names: Relu" in text

    def test_nodes_without_a_name_are_counted(self, tmp_path):
        assert "node 'Foo_0'" in refused(write(tmp_path, parse("g (float[1] x) => (float[1] y) { y = Foo (x) }")))

    def test_unknown_domain(self, tmp_path):
        model = parse("g (float[1] x) => (float[1] y) { y = com.microsoft.Gelu (x) }", more=', "com.microsoft": 1')
        assert "unknown domain 'com.microsoft'" in refused(write(tmp_path, model))

    def test_an_operator_of_a_later_opset(self, tmp_path):
        assert "opset 18" in refused(write(tmp_path, parse("g (float[1] x) => (float[1] y) { y = Gelu (x) }")))

    def test_unknown_operator_of_our_domain(self, tmp_path):
        model = parse("g (float[1] x) => (float[1] y) { y = ai.xnorc.Binarise (x) }", more=', "ai.xnorc": 1')
        assert "near names: Binarize" in refused(write(tmp_path, model))

    def test_unknown_operator_in_a_subgraph(self, tmp_path):
        text = """g (bool c, float[2] x) => (float[2] y) { y = If (c) <
            then_branch = t () => (float[2] p) { p = Wrong (x) }, else_branch = e () => (float[2] q) { q = Neg (x) }> }"""
        assert "'Wrong" in refused(write(tmp_path, parse(text)))

    def test_local_functions_are_inlined(self, tmp_path):
        text = """<ir_version: 10, opset_import: ["": 18, "own": 1]>
            g (float[2] x) => (float[2] y) { [call] y = own.Twice (x) }
            <domain: "own", opset_import: ["": 18]> Twice (a) => (b) { [inner] b = Add (a, a) }"""
        model = onnx.parser.parse_model(text)
        model.functions[0].node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'twice', 'add']")
        read = read_model(write(tmp_path, model))
        assert [node.op_type for node in read.graph.node] == ["Add"]
        assert not read.functions
        assert list(source_names(read).values()) == ["twice"]

    def test_unknown_operator_in_a_function(self, tmp_path):
        text = """<ir_version: 10, opset_import: ["": 18, "own": 1]>
            g (float[2] x) => (float[2] y) { y = own.Twice (x) }
            <domain: "own", opset_import: ["": 18]> Twice (a) => (b) { [inner] b = Ad (a, a) }"""
        assert "node 'inner'" in refused(write(tmp_path, onnx.parser.parse_model(text)))

    def test_invalid_graph(self, tmp_path):
        model = parse("g (float[1] x) => (float[1] y) { y = Relu (nothing) }")
        assert "not valid ONNX" in refused(write(tmp_path, model))

    def test_shapes_that_do_not_fit(self, tmp_path):
        model = with_weight(np.ones((4, 5), np.float32), "y = MatMul (x, w)")
        assert "do not fit" in refused(write(tmp_path, model))

    def test_nodes_get_unique_names_and_keep_their_own(self):
        model = parse(
            "g (float[1] x) => (float[1] y) { [a] b = Neg (x)\n c = Neg (b)\n [a] d = Neg (c)\n y = Neg (d) }"
        )
        assert [node.name for node in prepare(model).graph.node] == ["a", "Neg_1", "a_1", "Neg_3"]

    def test_recursive_functions(self, tmp_path):
        text = """<ir_version: 10, opset_import: ["": 18, "own": 1]>
            g (float[2] x) => (float[2] y) { y = own.F (x) }
            <domain: "own", opset_import: ["": 18, "own": 1]> F (a) => (b) { b = own.F (a) }"""
        assert "cannot be inlined" in refused(write(tmp_path, onnx.parser.parse_model(text)))


class TestShapes:
    def test_dynamic_shape_shows_what_to_pass(self, tmp_path):
        text = refused(write(tmp_path, parse(DYNAMIC)))
        assert "input 'x' has the dynamic shape [batch,3,H,W]" in text
        assert "--shape x=1,3,224,224" in text

    def test_dynamic_batch_only(self, tmp_path):
        text = refused(write(tmp_path, parse("g (float[N,7] x) => (float[N,7] y) { y = Relu (x) }")))
        assert "--shape x=1,7" in text

    def test_unknown_rank(self, tmp_path):
        model = parse(GOOD)
        model.graph.input[0].type.tensor_type.ClearField("shape")
        assert "--shape x=" in refused(write(tmp_path, model))

    def test_given_shapes_are_used_and_reach_the_outputs(self, tmp_path):
        model = parse(DYNAMIC)
        model.graph.value_info.append(helper.make_tensor_value_info("y2", TensorProto.FLOAT, ["batch"]))
        read = read_model(write(tmp_path, model), {"x": [2, 3, 8, 9]})
        assert [d.dim_value for d in read.graph.output[0].type.tensor_type.shape.dim] == [2, 3, 8, 9]

    def test_shape_for_an_unknown_input(self, tmp_path):
        text = refused(write(tmp_path, parse(DYNAMIC)), {"z": [1, 3, 8, 8]})
        assert "'z'" in text
        assert "the inputs are x" in text

    @pytest.mark.parametrize("shape", [[1, 3, 8], [1, 4, 8, 8], [1, 3, 0, 8], [1, 3, -1, 8]])
    def test_shape_that_does_not_fit(self, tmp_path, shape):
        assert "was given" in refused(write(tmp_path, parse(DYNAMIC)), {"x": shape})

    def test_inputs_that_are_no_tensors(self, tmp_path):
        model = parse(GOOD)
        model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
        assert "not a tensor" in refused(write(tmp_path, model))


class TestValues:
    def test_nan_names_initializer_and_reader(self, tmp_path):
        text = refused(write(tmp_path, with_weight(np.float32([1, np.nan, 2]))))
        assert "initializer 'w'" in text
        assert "node 'reader' (Mul)" in text
        assert "NaN" in text

    def test_infinite_weight(self, tmp_path):
        text = refused(write(tmp_path, with_weight(np.full((3, 4), np.inf, np.float32), "y = MatMul (x, w)")))
        assert "infinite" in text

    def test_an_attention_mask_may_be_infinite(self, tmp_path):
        read_model(write(tmp_path, with_weight(np.float32([0, -np.inf, 0]), "y = Add (x, w)")))

    def test_nan_in_a_constant_node(self, tmp_path):
        model = parse(
            "g (float[3] x) => (float[3] y) { [k] c = Constant <value = float[1] {1}> ()\n [m] y = Mul (x, c) }"
        )
        model.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(np.float32([np.nan])))
        text = refused(write(tmp_path, model))
        assert "constant 'c'" in text
        assert "'m'" in text

    def test_data_that_do_not_fit_the_shape(self, tmp_path):
        model = with_weight(np.ones(3, np.float32))
        model.graph.initializer[0].dims[0] = 300
        refused(write(tmp_path, model))


class TestExternalData:
    def model(self, location: str, **entries: int) -> onnx.ModelProto:
        model = with_weight(np.ones((3, 4), np.float32), "y = MatMul (x, w)")
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=str(value))
        return model

    def test_good(self, tmp_path):
        (tmp_path / "w.bin").write_bytes(b"\x00" * 8 + np.arange(12, dtype=np.float32).tobytes())
        read = read_model(write(tmp_path, self.model("w.bin", offset=8, length=48)))
        np.testing.assert_array_equal(numpy_helper.to_array(read.graph.initializer[0]).ravel(), np.arange(12))
        assert read.graph.initializer[0].data_location == TensorProto.DEFAULT

    @pytest.mark.parametrize("location", ["/etc/passwd", "C:\\w.bin", "", "\\\\host\\share"])
    def test_absolute(self, tmp_path, location):
        assert "relative to the model's folder" in refused(write(tmp_path, self.model(location)))

    @pytest.mark.parametrize("location", ["../w.bin", "a/../../w.bin"])
    def test_outside(self, tmp_path, location):
        (tmp_path / "w.bin").write_bytes(bytes(48))
        inner = tmp_path / "inner"
        inner.mkdir()
        assert "outside" in refused(write(inner, self.model(location)))

    def test_outside_through_a_link(self, tmp_path):
        inner = tmp_path / "inner"
        inner.mkdir()
        (tmp_path / "w.bin").write_bytes(bytes(48))
        (inner / "w.bin").symlink_to(tmp_path / "w.bin")
        assert "outside" in refused(write(inner, self.model("w.bin")))

    def test_missing(self, tmp_path):
        text = refused(write(tmp_path, self.model("w.bin")))
        assert "missing" in text
        assert "tensor 'w'" in text

    @pytest.mark.parametrize("entries", [{"offset": 8}, {"offset": 0, "length": 47}, {"offset": 4, "length": 48}])
    def test_wrong_sizes(self, tmp_path, entries):
        (tmp_path / "w.bin").write_bytes(bytes(48))
        text = refused(write(tmp_path, self.model("w.bin", **entries)))
        assert "tensor 'w'" in text

    def test_negative_offset(self, tmp_path):
        (tmp_path / "w.bin").write_bytes(bytes(48))
        refused(write(tmp_path, self.model("w.bin", offset=-4, length=48)))

    def test_in_a_subgraph(self, tmp_path):
        text = """g (bool c, float[2] x) => (float[2] y) { y = If (c) <
            then_branch = t () => (float[2] p) { k = Constant <value = float[2] {1, 2}> ()\n p = Add (x, k) },
            else_branch = e () => (float[2] q) { q = Neg (x) }> }"""
        model = parse(text)
        tensor = model.graph.node[0].attribute[0].g.node[0].attribute[0].t
        tensor.Clear()
        tensor.CopyFrom(TensorProto(name="k", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL))
        tensor.external_data.add(key="location", value="/etc/passwd")
        assert "relative" in refused(write(tmp_path, model))


class TestSourceNames:
    def test_torchscript_names(self):
        model = parse("g (float[1] x) => (float[1] y) { a = Neg (x)\n b = Neg (a)\n y = Neg (b) }")
        for node, name in zip(model.graph.node, ["/conv1/Conv", "/layer1/layer1.0/conv1/Conv", "/Add"], strict=True):
            node.name = name
        assert source_names(model) == {"/conv1/Conv": "conv1", "/layer1/layer1.0/conv1/Conv": "layer1.0.conv1"}

    @pytest.mark.parametrize("text", ["", "[", "['']", "['', 'relu']", "3"])
    def test_scopes_without_a_module(self, text):
        model = parse("g (float[1] x) => (float[1] y) { [a] y = Neg (x) }")
        model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=text)
        assert source_names(model) == {}


class TestSaving:
    def test_the_same_model_gives_the_same_bytes(self, tmp_path):
        for name in ("a.onnx", "b.onnx"):
            save_model(parse(GOOD), tmp_path / name)
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
        assert read_model(tmp_path / "a.onnx").graph.node[0].op_type == "Relu"

    def test_no_folder(self, tmp_path):
        with pytest.raises(XnorcError, match="no folder"):
            save_model(parse(GOOD), tmp_path / "none" / "a.onnx")

    def test_disk_full_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        path = tmp_path / "a.onnx"
        path.write_bytes(b"old")

        def full(handle):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(XnorcError, match="No space left") as caught:
            save_model(parse(GOOD), path)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


class TestGolden:
    def test_inner_tensors_can_be_read(self):
        model = parse("g (float[2] x) => (float[2] y) { a = Neg (x)\n y = Abs (a) }")
        found = golden.run(model, {"x": np.float32([1, -2])}, ["a", "y", "x"])
        np.testing.assert_array_equal(found["a"], [-1, 2])
        np.testing.assert_array_equal(found["x"], [1, -2])

    def test_unknown_tensor(self):
        with pytest.raises(ModelError, match="no tensor 'q'"):
            golden.run(parse(GOOD), {}, ["q"])

    def test_missing_and_misshapen_feeds(self):
        with pytest.raises(InputError, match="no data for input 'x'"):
            golden.run(parse(GOOD), {})
        with pytest.raises(InputError) as caught:
            golden.run(parse(GOOD), {"x": np.zeros((2, 2), np.float32)})
        assert "\n" not in str(caught.value)

    def test_a_session_runs_many_times(self):
        active = golden.session(parse(GOOD))
        for value in (1, -1):
            x = np.full((1, 3), value, np.float32)
            np.testing.assert_array_equal(golden.run(active, {"x": x})["y"], np.maximum(x, 0))

    def test_evaluate_runs_nodes_and_graphs_with_our_operators(self):
        node = helper.make_node("Binarize", ["x"], ["y"], domain="ai.xnorc", zero=1)
        found = golden.evaluate([node], {"x": np.float32([0, -1])}, ["y"])
        np.testing.assert_array_equal(found["y"], [1, -1])
        model = with_weight(np.float32([2, 3, 4]))
        found = golden.evaluate(model.graph, {"x": np.ones((2, 3), np.float32)}, ["y"])
        np.testing.assert_array_equal(found["y"][0], [2, 3, 4])

    def test_nothing_heavy_is_imported_before_a_session(self):
        import subprocess
        import sys

        code = "import sys, xnorc.golden, xnorc.model; sys.exit('onnxruntime' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
