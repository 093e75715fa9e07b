"""Turn an ONNX file into a network: of PyTorch where that agrees with onnxruntime, else by queries.

onnx2torch rebuilds the graph from modules of PyTorch, which have gradients. Its logits are compared
with those of onnxruntime, which is what devices run, on images of the dataset.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import VictimError
from robustbench_med.models.deployed import onnx_graph
from robustbench_med.models.deployed.arranged import TOLERANCE, Arranged, agree
from robustbench_med.models.deployed.network import (
    Network,
    check_parameters,
    first_line,
    library,
    note_on_cut,
    squashed,
)
from robustbench_med.models.deployed.onnx_file import read_onnx
from robustbench_med.models.deployed.onnx_graph import Ending, ImageInput
from robustbench_med.models.deployed.source import Deployed
from robustbench_med.outputs import leaves
from robustbench_med.types import Images

_VERSIONS = (17, 15, 13)  # of ONNX's operators
COMPARED = 4  # images of the dataset on which it is compared


class Session(nn.Module):
    """An ONNX model run by onnxruntime on the CPU: it has no gradient.

    Args:
        content: the model in bytes.
        where: name of the file, for messages.
    """

    def __init__(self, content: bytes, where: str) -> None:
        super().__init__()
        self.content, self.where = content, where
        self._session: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def forward(self, x: Images) -> Tensor | dict[str, Tensor]:
        """Return the output of the model, or its outputs by their names."""
        if self._session is None:
            self._session = self._open()
        name = self._session.get_inputs()[0].name
        values = self._session.run(None, {name: x.detach().cpu().contiguous().numpy()})
        names = [output.name for output in self._session.get_outputs()]
        tensors = {
            name: torch.from_numpy(value).to(x.device)
            for name, value in zip(names, values, strict=True)
            if hasattr(value, "dtype") and value.dtype.kind in "fiub"
        }
        return next(iter(tensors.values())) if len(tensors) == 1 else tensors

    def _open(self) -> Any:  # noqa: ANN401
        runtime = library("onnxruntime", f"onnx:{self.where}")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # its errors are raised as well
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return runtime.InferenceSession(
            self.content, sess_options=options, providers=["CPUExecutionProvider"]
        )


class Converted(nn.Module):
    """Modules of onnx2torch, which return several outputs by their names.

    Args:
        inner: the modules.
        names: the names of the outputs.
    """

    def __init__(self, inner: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.inner, self.names = inner, names

    def forward(self, x: Images) -> Any:  # noqa: ANN401 - a tensor, or several by their names
        """Return the output of the modules, or the outputs by their names."""
        with warnings.catch_warnings():
            # its slices and shapes use forms that torch deprecates
            warnings.simplefilter("ignore")
            outputs = self.inner(x)
        return outputs if len(self.names) == 1 else dict(zip(self.names, outputs, strict=True))


class _Arrangement(NamedTuple):
    image: ImageInput
    batch: int | None
    classes_last: bool

    def around(self, module: nn.Module) -> Arranged:
        return Arranged(
            module,
            batch=self.batch,
            channels_last=self.image.channels_last,
            classes_last=self.classes_last,
            dtype=self.image.dtype,
        )


def load_onnx(source: Deployed, data: DatasetCard, shown: Images) -> Network:
    """Return the network in an ONNX file.

    Args:
        source: the file; its parameter `runtime=True` asks for onnxruntime, and thereby for queries
            only.
        data: states channels, size and classes.
        shown: `(b, c, *s)` images of the dataset, normalised.

    Raises:
        NotInstalledError: onnx, onnx2torch or onnxruntime is missing.
        VictimError: as `read_onnx`; the network does not read such images; or onnxruntime cannot
            run it.
    """
    check_parameters("onnx", source.parameters, ("runtime",))
    where, shown = source.path.name, shown[:COMPARED]
    model, sha256 = read_onnx(source.path)
    image = onnx_graph.image_input(where, model, data)
    cut, endings = onnx_graph.without_ending(model)
    arrangement, notes = _arrangement(where, cut, image, data, shown)
    cut_notes = _agreeing(where, model, cut, endings, arrangement, shown, data) if endings else []
    if cut_notes is None:
        cut, endings = model, []
    notes += cut_notes or []
    runtime = arrangement.around(Session(cut.SerializeToString(), where))
    converted, reason = None, "runtime=True asks for onnxruntime"
    if image.dtype is torch.uint8:
        reason = "it reads whole grey levels 0..255, to which images are rounded"
    elif not source.parameters.get("runtime"):
        converted, reason = _converted(where, cut, arrangement, runtime, shown)
    if converted is None:
        notes.append(f"queries only: it runs in onnxruntime, which gives no gradient ({reason})")
    else:
        notes.append(
            "converted from ONNX to PyTorch by onnx2torch; on images of the dataset its outputs "
            f"are those of onnxruntime, within {TOLERANCE:g} of the largest"
        )
    changes = [image.channels_last, arrangement.batch, bool(endings)]
    return Network(
        module=runtime if converted is None else converted,
        sha256=sha256,
        family="onnx",
        builder=f"onnx({'runtime' if converted is None else 'onnx2torch'}, {changes})",
        notes=tuple(notes),
        queries_only=converted is None,
    )


def _arrangement(
    where: str,
    model: Any,  # noqa: ANN401
    image: ImageInput,
    data: DatasetCard,
    shown: Images,
) -> tuple[_Arrangement, list[str]]:
    """Return how a model is asked, and notes about it."""
    session, notes = Session(model.SerializeToString(), where), list[str]()
    alone = _Arrangement(image, image.batch or 1, classes_last=False)
    try:
        answers = alone.around(session)(shown)
    except Exception as error:  # onnxruntime's errors have no common type
        raise VictimError(
            f"{where}: expected a network that onnxruntime can run on "
            f"{tuple(shown.shape[1:])} images, got: {first_line(error)}"
        ) from None
    if image.channels_last:
        notes.append("the network reads channels last")
    batch = image.batch
    if batch is None:
        try:
            together = alone._replace(batch=None).around(session)(shown)
        except Exception:  # a shape inside the network is that of one image
            together = None
        if together is None or not agree(together, answers):
            batch = 1
            notes.append("the network is asked one image at a time, as it was exported")
    elif batch > 1:
        notes.append(f"the network takes {batch} images at once, and gets copies to fill them")
    return _Arrangement(image, batch, _classes_last(answers, data)), notes


def _classes_last(answers: Any, data: DatasetCard) -> bool:  # noqa: ANN401
    """Return whether masks come with the classes on the last axis."""
    if data.task != "segmentation":
        return False
    shapes = [tuple(tensor.shape[1:]) for tensor in leaves(answers).values()]
    widths = data.outputs
    first = any((k, *data.size) in shapes or data.size in shapes for k in widths)
    return not first and any((*data.size, k) in shapes for k in widths)


def _agreeing(
    where: str,
    model: Any,  # noqa: ANN401
    cut: Any,  # noqa: ANN401
    endings: list[Ending],
    arrangement: _Arrangement,
    shown: Images,
    data: DatasetCard,
) -> list[str] | None:
    """Return notes on what was cut; None if the logits do not give the outputs of the file."""
    whole, before = (
        arrangement.around(Session(part.SerializeToString(), where))(shown) for part in (model, cut)
    )
    notes = []
    for ending in endings:
        p, logits = (
            outputs if isinstance(outputs, Tensor) else outputs[ending.output]
            for outputs in (whole, before)
        )
        if not torch.allclose(squashed(logits, ending.names), p, atol=1e-4):
            return None
        notes.append(note_on_cut(where, ending.names, data, logits))
    return notes


def _converted(
    where: str,
    model: Any,  # noqa: ANN401
    arrangement: _Arrangement,
    runtime: nn.Module,
    shown: Images,
) -> tuple[nn.Module | None, str]:
    """Return a model as a module of PyTorch, or None and the reason why there is none."""
    if onnx_graph.branches(model):
        return None, "onnx2torch converts no graph with branches"
    names = [value.name for value in model.graph.output]
    try:
        onnx = library("onnx.inliner", f"onnx:{where}")
        simple = onnx_graph.folded(onnx_graph.expanded(onnx, model))
        inner = _modules(where, onnx_graph.renamed(simple))
    except Exception as error:  # onnx2torch raises errors of any type
        return None, f"onnx2torch cannot convert it: {first_line(error)}"
    module = arrangement.around(Converted(inner, names))
    try:
        with torch.no_grad():
            answers = [module(shown), module(shown[:1])]
            references = [runtime(shown), runtime(shown[:1])]
    except Exception as error:  # a module of foreign making may raise anything
        return None, f"its conversion does not run: {first_line(error)}"
    if not all(agree(a, b) for a, b in zip(answers, references, strict=True)):
        return None, "the outputs of its conversion by onnx2torch differ from onnxruntime's"
    return module, ""


def _modules(where: str, model: Any) -> nn.Module:  # noqa: ANN401
    """Return a model as modules of PyTorch, in the first version of ONNX that onnx2torch reads.

    It knows few operators beyond version 15. In an older version some have another meaning, which
    the comparison with onnxruntime would show.
    """
    onnx = library("onnx", f"onnx:{where}")
    convert = library("onnx2torch", f"onnx:{where}").convert
    failure: Exception | None = None
    for version in _VERSIONS:
        for change in (onnx_graph.declared, onnx.version_converter.convert_version):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of torch, on values that become constants
                    module: nn.Module = convert(change(model, version)).eval()
                    return module
            except Exception as error:  # any type; that of the newest version tells most
                failure = failure or error
    raise failure or VictimError(f"{where}: expected a version of ONNX, got none")
