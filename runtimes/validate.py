"""Validation: does the device compute what the original model says?

1. The passes: the packed model against the original, both in ONNX Runtime, tensor by tensor.
2. Each layer on the device, fed with golden inputs, against the packed model: integers equal, floats within a bound that
   is known before (``bounds``).
3. The whole model on the device, on all samples, against the original: errors, classes, accuracy; each sample whose class
   differs is traced until the reason is found (``judge``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, PackageError
from .compare import NO_FLIPS, Difference, Flips, classes
from .device import Device, Session, as_samples, parse_device
from .judge import Golden, Verdict, compare_tensor, is_tie, judge_device, judge_passes
from .reference import Reference, References
from .result import Disagreement, EndToEnd, Int8Effect, LayerCheck, LayerFlips, TensorCheck, ValidationResult

if TYPE_CHECKING:
    import onnx

    from ..package import Package

LABELS = ("labels", "label")
MAX_DATA = 8 << 30
Progress = Callable[[str, int, int], None]
"""Called with the stage, the number of samples done, and the number of all."""


def validate(
    package: Package,
    device: Device | str = "host",
    data: Mapping[str, np.ndarray] | str | PathLike[str] | None = None,
    *,
    limit: int | None = None,
    layer_samples: int = 8,
    trace_limit: int = 256,
    threads: int = 1,
    model: onnx.ModelProto | None = None,
    progress: Progress | None = None,
) -> ValidationResult:
    """Validate ``package`` on ``device``.

    ``data``: input name → array (for the leading axis see ``device``), and optionally ``labels``, one integer a sample;
    or the path of a ``.npz`` of these; None takes the golden inputs of the package. ``limit``: use the first so many
    samples. ``layer_samples``: samples for the checks of passes and layers. ``trace_limit``: most samples that are
    traced because their class differs; those beyond count as unexplained. ``model``: the original, where the package
    leaves it out.

    Raises ``InputError`` when the data do not fit, ``DeviceError`` when the device fails.
    """
    feeds, labels = read_data(package, data, limit)
    say = progress or (lambda stage, done, total: None)
    say("preparing", 0, 1)
    references = References(package, model)
    opened = parse_device(device) if isinstance(device, str) else device
    with opened.open(package, threads) as session:
        return _Validation(package, opened.name, references, session, feeds, labels, trace_limit, say).run(
            layer_samples
        )


def read_data(
    package: Package, data: Mapping[str, np.ndarray] | str | PathLike[str] | None, limit: int | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Checked inputs ``[samples, *shape]`` by name, and the labels where there are any. See ``validate``."""
    if data is None:
        arrays: Mapping[str, Any] = {
            name.removeprefix("input/"): array for name, array in package.golden().items() if name.startswith("input/")
        }
    elif isinstance(data, Mapping):
        arrays = data
    else:
        from ..files import parse_npz, read_bytes

        arrays = parse_npz(read_bytes(data, MAX_DATA), f"'{data}'", MAX_DATA)
    tensors = {
        package.manifest["tensors"][i]["name"]: package.manifest["tensors"][i] for i in package.manifest["inputs"]
    }
    label_key = next((key for key in LABELS if key in arrays and key not in tensors), None)
    feeds: dict[str, np.ndarray] = {}
    for name in arrays:
        if name not in tensors and name != label_key:
            raise InputError(f"the data hold '{name}', the model's inputs are {', '.join(tensors)} (and labels)")
    for name, tensor in tensors.items():
        if name not in arrays:
            raise InputError(f"the data have no array '{name}' ({tensor['dtype']} {list(tensor['shape'])})")
        feeds[name] = as_samples(tensor, np.asarray(arrays[name]), "input")[0][:limit]
    counts = {name: len(array) for name, array in feeds.items()}
    if len(set(counts.values())) > 1:
        raise InputError(
            "the inputs have different numbers of samples: " + ", ".join(f"'{n}' {c}" for n, c in counts.items())
        )
    samples = next(iter(counts.values()))
    if samples == 0:
        raise InputError("the data hold no sample")
    if label_key is None:
        return feeds, None
    labels = np.asarray(arrays[label_key])[:limit].reshape(-1)
    if labels.dtype.kind not in "iu" or len(labels) != samples:
        raise InputError(
            f"'{label_key}' must be one integer for each of {samples} samples, is {labels.dtype} {labels.shape}"
        )
    return feeds, labels


class _Validation:
    """One run of ``validate``."""

    def __init__(
        self, package: Package, device: str, references: References, session: Session, feeds: dict[str, np.ndarray],
        labels: np.ndarray | None, trace_limit: int, say: Progress,
    ) -> None:  # fmt: skip
        self.package, self.device, self.references, self.session = package, device, references, session
        self.feeds, self.labels, self.trace_limit, self.say = feeds, labels, trace_limit, say
        self.count = len(next(iter(feeds.values())))
        tensors, self.steps = package.manifest["tensors"], package.manifest["steps"]
        self.tensors = {tensor["name"]: tensor for tensor in tensors}
        self.reads = list(dict.fromkeys(tensors[i]["name"] for step in self.steps for i in step["reads"]))
        self.written = [(step["name"], [tensors[i]["name"] for i in step["writes"]]) for step in self.steps]
        self.outputs = [tensors[i]["name"] for i in package.manifest["outputs"]]
        known = {*references.tensors, *feeds}
        for name in [*self.reads, *(tensor for _, writes in self.written for tensor in writes)]:
            if name not in known:
                raise PackageError(f"package '{package.name}': a step uses tensor '{name}', which packed.onnx lacks")
        self.passes: dict[str, tuple[Flips, bool]] = {}
        self.shared_error, self.passes_problem = 0.0, ""
        self.layers: dict[tuple[str, str], tuple[Difference, str]] = {}
        self.flips: dict[str, Flips] = {}
        self.found: dict[int, Disagreement] = {}
        self.traced: set[int] = set()
        self.zeros: dict[int, int] = {}
        self.weight_zeros = 0
        self.effect: Int8Effect | None = None

    def run(self, layer_samples: int) -> ValidationResult:
        """All three checks."""
        checked = min(max(1, layer_samples), self.count)
        for sample in range(checked):
            self.say("layers", sample, checked)
            golden = self._golden(sample)
            passes = judge_passes(self.references, golden)
            self._check_passes(golden, passes)
            self._check_layers(golden)
            self._trace(sample, golden, passes, None, None)
        self.say("layers", checked, checked)
        end_to_end = self._end_to_end()
        notes = list(self.session.notes)
        if self.references.choice != "model":
            note = self.references.choice_note(sum(self.zeros.values()), self.weight_zeros)
            notes.append(f"{note} ({len(self.zeros)} sample{'' if len(self.zeros) == 1 else 's'} looked at)")
        if self.references.unknown:
            notes.append(
                f"not compared with the original, which lacks their signs: {', '.join(self.references.unknown)}"
            )
        if self.passes_problem:
            notes.append(f"passes: {self.passes_problem}")
        return ValidationResult(
            package=self.package.name,
            target=self.package.target.name,
            device=self.device,
            layer_samples=checked,
            passes=[self._tensor_check(origin.packed, origin.tensor) for origin in self.references.origins],
            shared_tensors=len(self.references.shared),
            shared_max_error=self.shared_error,
            layers=self._layer_checks(),
            end_to_end=end_to_end,
            notes=notes,
            int8_effect=self.effect,
        )

    def _sample(self, index: int) -> dict[str, np.ndarray]:
        return {name: array[index] for name, array in self.feeds.items()}

    def _golden(self, sample: int) -> Golden:
        golden = Golden.of(self.references, self._sample(sample))
        if self.references.choice != "model":
            self.zeros[sample] = self.references.zeros(golden.original)
            self.weight_zeros = self.references.zeros(golden.original, weights=True)
        return golden

    # ---- passes ----

    def _check_passes(self, golden: Golden, verdict: Verdict) -> None:
        if not verdict.ok and not self.passes_problem:
            self.passes_problem = verdict.problem
        for origin in self.references.origins:
            flips, _ = self.references.flips(origin, golden.packed[origin.packed], golden.original)
            before, ok = self.passes.get(origin.packed, (NO_FLIPS, True))
            self.passes[origin.packed] = (before + flips, ok and (verdict.ok or verdict.tensor != origin.packed))
        for name in self.references.shared:
            expected, actual = golden.original[name], golden.packed[name]
            if expected.shape == actual.shape and actual.dtype.kind == "f":
                error = np.abs(expected.astype(np.float64) - actual)
                self.shared_error = max(self.shared_error, float(error.max(initial=0)))

    def _tensor_check(self, packed: str, original: str) -> TensorCheck:
        flips, ok = self.passes[packed]
        return TensorCheck(packed, original, flips.bits, flips.flips, flips.ties, flips.max_margin, ok)

    # ---- layers ----

    def _check_layers(self, golden: Golden) -> None:
        answers = self.session.layers({name: self._as_on_device(name, golden)[None] for name in self.reads})
        for step, (name, writes) in zip(self.steps, self.written, strict=True):
            for tensor in writes:
                nodes = self.references.nodes_of(step, tensor)
                errors, masks = self.references.analysis.run(golden.packed, nodes)
                expected = self._as_on_device(tensor, golden)
                error = np.broadcast_to(errors.get(tensor, 0.0), golden.packed[tensor].shape).reshape(expected.shape)
                if self._packs_equal(tensor, writes, answers, golden):
                    masks.pop(tensor, None)
                found = compare_tensor(self.references, tensor, expected, answers[tensor][0], error, masks.get(tensor))
                key = (name, tensor)
                if key in self.layers:
                    self.layers[key] = (self.layers[key][0] + found, self.layers[key][1])
                else:
                    self.layers[key] = (found, self._reason(tensor, nodes, golden, tensor in masks))

    def _packs_equal(
        self, tensor: str, writes: Sequence[str], answers: Mapping[str, np.ndarray], golden: Golden
    ) -> bool:
        """Whether a step packs in ``tensor`` what it also writes, and that is equal: then no bit of it is open."""
        node = self.references.packed.producer.get(tensor)
        if node is None or not node.op_type.startswith("Pack") or node.input[0] not in writes:
            return False
        return np.array_equal(answers[node.input[0]][0], self._as_on_device(node.input[0], golden))

    def _reason(self, tensor: str, nodes: Sequence[onnx.NodeProto], golden: Golden, open_bits: bool) -> str:
        if golden.packed[tensor].dtype.kind == "f":
            return self.references.analysis.reason(nodes, golden.packed)
        if open_bits:
            return (
                f"signs closer to zero than the bound are open: {self.references.analysis.reason(nodes, golden.packed)}"
            )
        return "integers: equality is required"

    def _as_on_device(self, name: str, golden: Golden) -> np.ndarray:
        """A golden tensor in the shape that the device has it in (a view may have given it another)."""
        tensor, value = self.tensors[name], golden.packed[name]
        if value.dtype != tensor["dtype"] or value.size != np.prod(tensor["shape"], dtype=np.int64):
            raise PackageError(
                f"package '{self.package.name}': tensor '{name}' is {value.dtype} {list(value.shape)} in packed.onnx "
                f"and {tensor['dtype']} {list(tensor['shape'])} in the manifest"
            )
        return value.reshape(tensor["shape"])

    def _layer_checks(self) -> list[LayerCheck]:
        by_name = {step["name"]: step for step in self.steps}
        return [
            LayerCheck(
                name=name,
                op=by_name[name]["op"],
                kind=by_name[name]["kind"],
                tensor=tensor,
                dtype="bits" if self.tensors[tensor]["dtype"] == "uint8" else self.tensors[tensor]["dtype"],
                compared=found.compared,
                differing=found.differing,
                max_error=found.max_error,
                bound=found.bound,
                used=found.used,
                reason=reason,
                ok=found.ok,
            )
            for (name, tensor), (found, reason) in self.layers.items()
        ]

    # ---- end to end ----

    def _end_to_end(self) -> EndToEnd:
        device = self.session.run(self.feeds, progress=lambda done, total: self.say("device", done, total))
        reference = {name: np.empty_like(device[name]) for name in self.outputs}
        for sample in range(self.count):
            values = self.references.given.run(self._sample(sample))
            for name in self.outputs:
                reference[name][sample] = values[name].reshape(reference[name].shape[1:])
            self.say("ONNX Runtime", sample + 1, self.count)
        if self.references.floats is not None:
            self.effect = self._int8_effect(self.references.floats, device)
        errors = [np.abs(device[name].astype(np.float64) - reference[name]).reshape(-1) for name in self.outputs]
        error = np.concatenate(errors)
        expected, got = classes(reference[self.outputs[0]]), classes(device[self.outputs[0]])
        if expected is not None and got is not None:
            self._explain_all(expected, got)
        return EndToEnd(
            samples=self.count,
            traced=len(self.traced),
            max_error=float(error.max(initial=0)),
            mean_error=float(error.mean()) if error.size else 0.0,
            agreement=_share_equal(expected, got),
            device_accuracy=_share_equal(got, self.labels),
            reference_accuracy=_share_equal(expected, self.labels),
            disagreements=[self.found[sample] for sample in sorted(self.found)],
            flips=[
                LayerFlips(o.packed, o.tensor, f.bits, f.flips, f.ties, f.max_margin)
                for o in self.references.origins
                if (f := self.flips.get(o.packed)) is not None
            ],
        )

    def _int8_effect(self, floats: Reference, device: Mapping[str, np.ndarray]) -> Int8Effect:
        """The outputs of the device against those of the float model."""
        expected = {name: np.empty_like(device[name]) for name in self.outputs}
        for sample in range(self.count):
            values = floats.run(self._sample(sample))
            for name in self.outputs:
                expected[name][sample] = values[name].reshape(expected[name].shape[1:])
            self.say("float model", sample + 1, self.count)
        error = np.concatenate([np.abs(device[n].astype(np.float64) - expected[n]).reshape(-1) for n in self.outputs])
        found, wanted = classes(device[self.outputs[0]]), classes(expected[self.outputs[0]])
        return Int8Effect(
            layers=self.references.int8_layers,
            shortcuts=self.references.shortcuts,
            samples=self.count,
            agreement=_share_equal(wanted, found),
            int8_accuracy=_share_equal(found, self.labels),
            float_accuracy=_share_equal(wanted, self.labels),
            max_error=float(error.max(initial=0)),
            mean_error=float(error.mean()) if error.size else 0.0,
            output_range=float(max((np.abs(value).max(initial=0) for value in expected.values()), default=0)),
        )

    def _explain_all(self, expected: np.ndarray, got: np.ndarray) -> None:
        different = np.flatnonzero(expected != got)
        for position, index in enumerate(different.tolist()):
            self.say("explaining", position, len(different))
            if position < self.trace_limit:
                golden = self._golden(index)
                passes = judge_passes(self.references, golden)
                self._trace(index, golden, passes, int(expected[index]), int(got[index]))
            else:
                why = f"not traced: more than {self.trace_limit} samples have another class"
                self.found[index] = Disagreement(index, int(expected[index]), int(got[index]), False, why)

    def _trace(self, sample: int, golden: Golden, passes: Verdict, expected: int | None, got: int | None) -> None:
        """Trace one sample; note it when its class differs, or when it differs anywhere without a reason."""
        trace = {name: value[0] for name, value in self.session.trace(golden.feeds).items()}
        if sample not in self.traced:
            self.traced.add(sample)
            for origin in self.references.origins:
                if origin.packed in trace:
                    flips, _ = self.references.flips(
                        origin, trace[origin.packed].reshape(golden.packed[origin.packed].shape), golden.original
                    )
                    self.flips[origin.packed] = self.flips.get(origin.packed, NO_FLIPS) + flips
        device = judge_device(self.references, golden, self.written, trace)
        problem = device.problem or passes.problem
        why = problem or device.flip or passes.flip or ""
        if not why and expected is not None and got is not None:
            chosen = expected
            if self.zeros.get(sample) or self.weight_zeros:  # with the choice made, the original may have another class
                chosen = int(golden.original[self.outputs[0]].argmax())
            if chosen != expected and (chosen == got or is_tie(golden, self.outputs[0], chosen, got)):
                why = self.references.choice_note(self.zeros[sample], self.weight_zeros)
            elif is_tie(golden, self.outputs[0], expected, got):
                why = "the two outputs are closer than the error bound tells apart"
            else:
                problem = why = "no sign flipped and the outputs are further apart than the error bound"
        if problem or expected is not None:
            self.found[sample] = Disagreement(sample, expected, got, not problem, why)


def _share_equal(some: np.ndarray | None, others: np.ndarray | None) -> float | None:
    return None if some is None or others is None else float(np.mean(np.equal(some, others)))
