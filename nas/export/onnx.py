"""A traced function of images as an ONNX model: an operation of JAX after the other.

The converters that there are do not go with this project's versions of JAX and Orbax (docs/guide/export.md), and
what its networks are made of is some fifty operations. What depends on constants alone, such as the scale of a
normalisation, is computed here. The batch size is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from nas.errors import InputError

OPSET = 18
INLINED = (
    "pjit",
    "jit",
    "closed_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "remat",
    "checkpoint",
    "custom_lin",
)
ONE_TO_ONE = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow", "neg": "Neg",
    "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt", "abs": "Abs", "sign": "Sign",
    "erf": "Erf", "floor": "Floor", "ceil": "Ceil", "sin": "Sin", "cos": "Cos", "gt": "Greater", "lt": "Less",
    "ge": "GreaterOrEqual", "le": "LessOrEqual", "eq": "Equal", "and": "And", "or": "Or", "not": "Not",
    "stop_gradient": "Identity", "copy": "Identity", "copy_p": "Identity", "add_any": "Add",
}  # fmt: skip
NHWC, HWIO = (0, 3, 1, 2), (3, 2, 0, 1)


def import_onnx() -> Any:
    """The ``onnx`` package; InputError where it is not there."""
    try:
        import onnx
    except ImportError:
        raise InputError("export: ONNX needs a package: pip install -r requirements-export.txt") from None
    return onnx


def to_onnx(function: Callable[[jax.Array], Any], shape: tuple[int, ...], name: str) -> Any:
    """The model of ``function``, from float32 ``images`` of ``shape`` to its one result, ``logits``.

    Raises InputError for an operation that has no translation.
    """
    onnx = import_onnx()
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, np.float32))
    writer = Writer(onnx)
    (image,), (out,) = closed.jaxpr.invars, closed.jaxpr.outvars
    writer.names[image] = "images"
    writer.run(closed.jaxpr, closed.consts)
    writer.node("Identity", [writer.name(out)], name="logits")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        writer.nodes,
        name,
        [value("images", onnx.TensorProto.FLOAT, shape)],
        [value("logits", onnx.TensorProto.FLOAT, out.aval.shape)],
        list(writer.initialisers.values()),
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="jax-nas")
    onnx.checker.check_model(model)
    return model


class Writer:
    """The nodes so far. A value of the program is a constant, in ``known``, or the output of a node, in ``names``."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.initialisers: dict[str, Any] = {}
        self.names: dict[Any, str] = {}
        self.known: dict[Any, Any] = {}

    def node(self, kind: str, inputs: Sequence[str], name: str | None = None, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        out = name or f"v{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def constant(self, value: Any) -> str:
        """The name of a constant."""
        array = np.asarray(value)
        name = f"c{len(self.initialisers)}"
        self.initialisers[name] = self.onnx.numpy_helper.from_array(
            np.ascontiguousarray(array).reshape(array.shape), name
        )
        return name

    def integers(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def name(self, atom: Any) -> str:
        if not isinstance(atom, core.Literal) and atom in self.names:
            return self.names[atom]
        name = self.constant(self.value(atom))
        if not isinstance(atom, core.Literal):
            self.names[atom] = name
        return name

    def value(self, atom: Any) -> Any:
        if not isinstance(atom, core.Literal):
            return self.known[atom]
        aval: Any = atom.aval
        return np.asarray(atom.val, aval.dtype)

    def is_known(self, atom: Any) -> bool:
        return isinstance(atom, core.Literal) or atom in self.known

    def run(self, jaxpr: Any, consts: Sequence[Any]) -> None:
        self.known |= dict(zip(jaxpr.constvars, consts, strict=True))
        for equation in jaxpr.eqns:
            if all(map(self.is_known, equation.invars)):
                found = equation.primitive.bind(*map(self.value, equation.invars), **equation.params)
                found = found if equation.primitive.multiple_results else [found]
                self.known |= dict(zip(equation.outvars, found, strict=True))
            elif equation.primitive.name in INLINED:
                self.inline(equation)
            else:
                self.names[equation.outvars[0]] = self.translated(equation)

    def inline(self, equation: Any) -> None:
        inner = next(
            equation.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in equation.params
        )
        jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
        # The same function may be called twice: its values are of this call.
        for var in _variables(jaxpr):
            self.names.pop(var, None)
            self.known.pop(var, None)
        for var, atom in zip(jaxpr.invars, equation.invars, strict=True):
            if self.is_known(atom):
                self.known[var] = self.value(atom)
            else:
                self.names[var] = self.name(atom)
        self.run(jaxpr, consts)
        for var, atom in zip(equation.outvars, jaxpr.outvars, strict=True):
            if self.is_known(atom):
                self.known[var] = self.value(atom)
            else:
                self.names[var] = self.name(atom)

    def translated(self, equation: Any) -> str:
        """The name of the equation's result."""
        kind, params = equation.primitive.name, equation.params
        inputs = [self.name(atom) for atom in equation.invars]
        if kind in ONE_TO_ONE:
            return self.node(ONE_TO_ONE[kind], inputs)
        method = getattr(self, f"op_{kind}", None)
        if method is None:
            raise InputError(f"export: ONNX: there is no translation of JAX's operation {kind}")
        return method(inputs, equation.outvars[0].aval, [atom.aval for atom in equation.invars], params)

    # ---- element by element --------------------------------------------------------------------------------------

    def op_rsqrt(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        return self.node("Reciprocal", [self.node("Sqrt", inputs)])

    def op_square(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        return self.node("Mul", inputs * 2)

    def op_integer_pow(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        return self.node("Pow", [*inputs, self.constant(np.array(params["y"], out.dtype))])

    def op_log1p(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        return self.node("Log", [self.node("Add", [*inputs, self.constant(np.array(1, out.dtype))])])

    def op_expm1(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        return self.node("Sub", [self.node("Exp", inputs), self.constant(np.array(1, out.dtype))])

    def op_ne(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        return self.node("Not", [self.node("Equal", inputs)])

    def op_clamp(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        low, x, high = inputs
        return self.node("Min", [self.node("Max", [x, low]), high])

    def op_select_n(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        which, no, yes = inputs
        return self.node("Where", [which, yes, no])

    def op_convert_element_type(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        return self.node("Cast", inputs, to=self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(out.dtype)))

    # ---- shapes --------------------------------------------------------------------------------------------------

    def op_reshape(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        return self.node("Reshape", [inputs[0], self.integers(out.shape)])

    op_squeeze = op_expand_dims = op_reshape

    def op_broadcast_in_dim(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        shape = [1] * len(out.shape)
        for axis, size in zip(params["broadcast_dimensions"], avals[0].shape, strict=True):
            shape[axis] = size
        x = self.node("Reshape", [inputs[0], self.integers(shape)])
        return self.node("Expand", [x, self.integers(out.shape)])

    def op_transpose(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        return self.node("Transpose", inputs, perm=list(params["permutation"]))

    def op_concatenate(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        return self.node("Concat", inputs, axis=params["dimension"])

    def op_slice(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        rank = len(out.shape)
        steps = params["strides"] or (1,) * rank
        ends = (params["start_indices"], params["limit_indices"], range(rank), steps)
        return self.node("Slice", [inputs[0], *map(self.integers, map(list, ends))])

    def op_rev(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        axes = list(params["dimensions"])
        ends = ([-1] * len(axes), [-(2**31)] * len(axes), axes, [-1] * len(axes))
        return self.node("Slice", [inputs[0], *map(self.integers, ends)])

    def op_pad(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        low, high, interior = zip(*params["padding_config"], strict=True)
        if any(interior):
            raise InputError("export: ONNX: there is no translation of padding between elements")
        return self.node("Pad", [inputs[0], self.integers([*low, *high]), inputs[1]])

    # ---- sums, products, windows ---------------------------------------------------------------------------------

    def reduced(self, kind: str, inputs: list[str], params: Any) -> str:
        return self.node(kind, [inputs[0], self.integers(params["axes"])], keepdims=0)

    def op_reduce_sum(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        return self.reduced("ReduceSum", inputs, params)

    def op_reduce_max(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        return self.reduced("ReduceMax", inputs, params)

    def op_reduce_min(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        return self.reduced("ReduceMin", inputs, params)

    def op_dot_general(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        """An einsum: batch axes, then those left of either side."""
        (contract, batch), letters = params["dimension_numbers"], iter("abcdefghijklmnopqrstuvwxyz")
        sides: list[dict[int, str]] = [{}, {}]
        for left, right in (*zip(*batch, strict=True), *zip(*contract, strict=True)):
            sides[0][left] = sides[1][right] = next(letters)
        for side, aval in zip(sides, avals, strict=True):
            for axis in range(len(aval.shape)):
                side.setdefault(axis, next(letters))
        taken = [{*contract[k], *batch[k]} for k in (0, 1)]
        result = [sides[0][axis] for axis in batch[0]]
        for k in (0, 1):
            result += [sides[k][axis] for axis in range(len(avals[k].shape)) if axis not in taken[k]]
        terms = ("".join(side[axis] for axis in sorted(side)) for side in sides)
        return self.node("Einsum", inputs, equation=f"{','.join(terms)}->{''.join(result)}")

    def channels_first(self, x: str) -> str:
        return self.node("Transpose", [x], perm=[0, 3, 1, 2])

    def channels_last(self, x: str) -> str:
        return self.node("Transpose", [x], perm=[0, 2, 3, 1])

    def op_conv_general_dilated(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        numbers = params["dimension_numbers"]
        usual = (tuple(numbers.lhs_spec), tuple(numbers.rhs_spec), tuple(numbers.out_spec)) == (
            NHWC,
            HWIO,
            NHWC,
        )
        padding = params["padding"]
        if (
            not usual
            or set(params["lhs_dilation"]) != {1}
            or params["batch_group_count"] != 1
            or min(map(min, padding)) < 0
        ):
            raise InputError(
                "export: ONNX: there is no translation of a convolution with these axes or dilations"
            )
        kernel = self.node("Transpose", [inputs[1]], perm=[3, 2, 0, 1])
        y = self.node(
            "Conv",
            [self.channels_first(inputs[0]), kernel],
            strides=list(params["window_strides"]),
            dilations=list(params["rhs_dilation"]),
            pads=[before for before, _ in padding] + [after for _, after in padding],
            group=params["feature_group_count"],
        )
        return self.channels_last(y)

    def pooled(self, kind: str, inputs: list[str], params: Any, **attributes: Any) -> str:
        window, strides = params["window_dimensions"], params["window_strides"]
        padding, dilation = params["padding"], params.get("window_dilation") or (1,) * len(window)
        if len(window) != 4 or (window[0], window[3]) != (1, 1) or set(dilation) != {1}:
            raise InputError(
                "export: ONNX: there is no translation of windows that are not over height and width"
            )
        pads = [padding[1][0], padding[2][0], padding[1][1], padding[2][1]]
        shape = {"kernel_shape": list(window[1:3]), "strides": list(strides[1:3]), "pads": pads}
        return self.channels_last(self.node(kind, [self.channels_first(inputs[0])], **shape, **attributes))

    def op_reduce_window_max(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        return self.pooled("MaxPool", inputs, params)

    def op_reduce_window_sum(self, inputs: list[str], out: Any, avals: Any, params: Any) -> str:
        mean = self.pooled("AveragePool", inputs, params, count_include_pad=1)
        return self.node(
            "Mul", [mean, self.constant(np.array(math.prod(params["window_dimensions"]), out.dtype))]
        )


def _variables(jaxpr: Any) -> set[Any]:
    """Those that a call of ``jaxpr`` gives values."""
    made = {*jaxpr.invars, *jaxpr.constvars}
    for equation in jaxpr.eqns:
        made |= set(equation.outvars)
    return made
