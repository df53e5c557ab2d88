"""Linear + focal loss: a matmul and the loss of its logits, without them, in each form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances
from pairs import every_pair

import focaljax
from focaljax import _arguments, _sharding, linear_softmax_focal_loss
from focaljax._linear import layer, plan
from focaljax._linear import operands as layer_operands

# Chunks of 4, 6 and 12 divide them: what is left over is another body to compile, and has a test of its own.
ROWS, WIDTH, CLASSES = 12, 5, 36
STRATEGIES = ("rows", "classes")
KINDS = (*STRATEGIES, "stored")  # rows in chunks whose logits' gradients are stored together
FLOATS = ("inputs", "kernel", "bias", "sample_weight", "alpha", "gamma")
EACH = {
    "label_smoothing": [0.0, 0.1],
    "logit_soft_cap": [None, 2.0],
    "z_loss": [0.0, 1e-2],
    "ignore_index": [None, 3, -1],
}
OPTIONS = {"plain": {}, "all": {name: values[1] for name, values in EACH.items()}}
MASKS = {
    "none": None,
    "classes that take part": np.arange(CLASSES) < 20,
    "examples that count": np.arange(ROWS)[:, None] % 3 > 0,
}
SHAPES = {  # of alpha and gamma
    "per class, shared": ((CLASSES,), ()),
    "shared, per class": ((), (CLASSES,)),
    "of one entry, per example": ((1,), (ROWS, 1)),
    "per class, of one entry": ((CLASSES,), (1, 1)),
    "per example, per class": ((ROWS, 1), (1, CLASSES)),
}


@pytest.fixture(params=STRATEGIES)
def strategy(request) -> str:
    return request.param


@pytest.fixture
def storing(monkeypatch):
    """One device, which may store the gradient of the logits; the kernel's in parts that tests meet."""
    monkeypatch.setattr(_sharding, "parts", lambda x: 1)
    monkeypatch.setattr(layer, "PART", 2)


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def form(kind, request) -> dict:
    """What makes the program one of the kind."""
    if kind == "stored":
        request.getfixturevalue("storing")
        return {"strategy": "rows", "memory": 2**30}
    return {"strategy": kind}


@pytest.fixture
def chosen(label_smoothing, logit_soft_cap, z_loss, ignore_index) -> dict:
    """The options of `EACH`."""
    given = (label_smoothing, logit_soft_cap, z_loss, ignore_index)
    return dict(zip(EACH, given, strict=True))


def batch(dtype="float32", rows=ROWS, width=WIDTH, classes=CLASSES, alpha=None, gamma=()):
    """Everything that may be differentiated, alpha and gamma of these shapes, and labels; of NumPy."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows)
    labels[:2] = 3
    arrays = {
        "inputs": rng.normal(size=(rows, width)),
        "kernel": 2 * rng.normal(size=(width, classes)) / np.sqrt(width),
        "bias": rng.normal(size=classes),
        "sample_weight": rng.uniform(0.5, 2.0, rows),
        "alpha": rng.uniform(0.5, 2.0, (classes,) if alpha is None else alpha),
        "gamma": np.asarray(rng.uniform(0.5, 2.5, gamma)),
    }
    dtypes = dict.fromkeys(FLOATS[:3], jnp.dtype(dtype))
    return {name: x.astype(dtypes.get(name, "float32")) for name, x in arrays.items()}, np.int32(labels)


def plain(
    inputs,
    kernel,
    labels,
    *,
    bias,
    sample_weight,
    cap=jnp.inf,
    z_loss=0.0,
    ignored=-1,
    where=True,
    **options,
):
    """Each loss from logits. Any option may be an operand, so that one program does; no cap is inf."""
    z = jnp.matmul(inputs, kernel, preferred_element_type=jnp.float32) + bias.astype(jnp.float32)[None, :]
    capped = jnp.isfinite(cap)
    finite = jnp.where(capped, cap, 1.0)
    z = jnp.where(where, jnp.where(capped, finite * jnp.tanh(z / finite), z), -jnp.inf)
    counted = labels != ignored
    labels = jnp.where(counted, labels, -1)
    options |= {"where": where, "ignore_index": -1}
    losses = focaljax.softmax_focal_loss_with_integer_labels(z, labels, **options)
    return (losses + jnp.where(counted, z_loss * jax.nn.logsumexp(z, -1) ** 2, 0)) * sample_weight


def factors(losses):
    """What single losses are weighed by in a sum: not the same."""
    return np.cos(np.arange(losses.size, dtype=np.float32))


def total(loss, floats, labels, **options):
    """The sum of the losses, of single ones by `factors`; and the losses."""
    given = dict(floats)
    found = loss(given.pop("inputs"), given.pop("kernel"), labels, **given, **options)
    return jnp.sum(found if found.ndim == 0 else found * factors(found)), found


def program(loss, **options):
    """Of floats and labels the losses, and every gradient of their `total`."""

    @jax.jit
    def both(floats, labels):
        gradients, found = jax.grad(partial(total, loss, labels=labels, **options), has_aux=True)(floats)
        return gradients | {"loss": found}

    return both


def everything(loss, floats, labels, **options):
    return program(loss, **options)(floats, labels)


@jax.jit
def each_of_logits(floats, labels, weigh, options):
    """The losses of `plain`, and every gradient of their sum weighed by `weigh`."""

    def total(floats):
        given = dict(floats)
        losses = plain(given.pop("inputs"), given.pop("kernel"), labels, **given, **options)
        return jnp.sum(losses * weigh), losses

    gradients, losses = jax.grad(total, has_aux=True)(floats)
    return gradients | {"loss": losses}


def of_logits(
    floats,
    labels,
    *,
    reduction="mean",
    label_smoothing=0.0,
    logit_soft_cap=None,
    z_loss=0.0,
    ignore_index=None,
    where=None,
    scale=1.0,
):
    """What `everything` must find, times `scale`: by one program for all options and reductions."""
    ignored = -1 if ignore_index is None else ignore_index
    counted = labels != ignored
    if where is not None and where.ndim == 2:
        counted, where = counted & where[:, 0], None
    weigh = {"mean": 1 / max(1, counted.sum()), "sum": 1.0, None: factors(labels)}[reduction]
    weigh = np.broadcast_to(np.float32(scale * weigh), labels.shape)
    numbers = {
        "label_smoothing": label_smoothing,
        "cap": np.inf if logit_soft_cap is None else logit_soft_cap,
        "z_loss": z_loss,
    }
    options = {name: np.float32(x) for name, x in numbers.items()}
    options["ignored"], labels = np.int32(ignored), np.where(counted, labels, np.int32(ignored))
    shape = (*labels.shape, floats["kernel"].shape[1])
    options["where"] = np.broadcast_to(True if where is None else where, shape)
    found = per_logit(lambda given: each_of_logits(given, labels, weigh, options), floats, shape)
    if reduction is None:
        found["loss"] = np.float32(scale) * found["loss"]
    else:
        found["loss"] = np.sum(np.float64(found["loss"]) * weigh).astype(np.float32)
    return found


def per_logit(each, floats, shape):
    """`each` of alpha and gamma with an entry per logit; the gradients of a shared one are added up."""
    spread = {name: np.broadcast_to(floats[name], shape) for name in ("alpha", "gamma") if name in floats}
    found = {name: np.asarray(x) for name, x in each(floats | spread).items()}
    return found | {name: added_up(found[name], floats[name].shape) for name in spread}


def added_up(x, shape):
    """The gradient by what was broadcast from `shape`."""
    x = np.float64(x).sum(tuple(range(x.ndim - len(shape))))
    return x.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True).astype(np.float32)


def assert_same(found, wanted, rtol=None):
    """One formula, the sums in another order; a gradient is judged by its largest entry."""
    assert found.keys() == wanted.keys()
    for name, truth in wanted.items():
        assert found[name].dtype == truth.dtype, name
        assert found[name].shape == truth.shape, name
        scale = np.max(np.abs(np.asarray(truth, np.float64)), initial=0.0)
        tolerances.assert_close(
            found[name],
            np.asarray(truth, np.float64),
            rtol=rtol or tolerances.rtol("same", 5.0),
            scale=scale,
            label=name,
        )


def spoiled(floats, labels, where, ignored):
    """NaN and infinity in all that takes no part, is ignored, or weighs nothing."""
    bad = {name: x.copy() for name, x in floats.items()}
    bad["inputs"][np.any(labels.reshape(len(labels), -1) == ignored, 1)] = np.nan
    bad["inputs"][floats["sample_weight"] == 0, 1] = np.inf
    if where is not None and where.ndim == 2:
        bad["inputs"][~where[:, 0]] = np.nan
    elif where is not None:
        bad["kernel"][:, ~where], bad["bias"][~where] = np.nan, np.inf
    return bad


def assert_silent(found, wanted):
    """What is spoiled changes neither the value nor a gradient."""
    for name in wanted.keys() - {"sample_weight"}:  # the derivative by a weight of 0 is the loss
        assert np.all(np.isfinite(wanted[name]))
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6, atol=1e-7, err_msg=name)


@every_pair(shapes=SHAPES, kind=KINDS, reduction=["mean", "sum", None], mask=MASKS, **EACH)
def test_value_and_every_gradient_are_those_of_the_logits(form, shapes, reduction, mask, chosen):
    """Also with NaN and infinity in what takes no part."""
    alpha, gamma = SHAPES[shapes]
    floats, labels = batch(alpha=alpha, gamma=gamma)
    where, ignored = MASKS[mask], chosen["ignore_index"]
    floats["sample_weight"][5], labels[4] = 0, 4 if ignored is None else ignored
    if mask == "classes that take part":
        labels %= 20
    chosen |= {"reduction": reduction, "where": where}
    ours = program(partial(linear_softmax_focal_loss, chunk=4, **form), **chosen)
    found = ours(floats, labels)
    assert_same(found, of_logits(floats, labels, **chosen))
    assert_silent(ours(spoiled(floats, labels, where, ignored), labels), found)


@every_pair(strategy=STRATEGIES, chunk=[1, 5, 11, 100], options=OPTIONS, reduction=["mean", None])
def test_any_chunk_gives_the_same(strategy, chunk, options, reduction):
    """They leave none, one or more rows or classes over, or are larger than all."""
    floats, labels = batch()
    chosen = OPTIONS[options] | {"reduction": reduction}
    ours = partial(linear_softmax_focal_loss, strategy=strategy, chunk=chunk)
    assert_same(everything(ours, floats, labels, **chosen), of_logits(floats, labels, **chosen))


def test_chunks_as_large_as_what_they_cut_or_larger_are_one_program(strategy):
    whole = {"rows": ROWS, "classes": CLASSES}[strategy]
    for chunk in (whole, whole + 1, 100, None):
        assert planned((ROWS, WIDTH, CLASSES), "float32", strategy, chunk, None).chunk == whole


# A chunk has 576 bytes of logits, their gradient takes 144 a row, and the sum of the kernel's gradient 864.
@pytest.mark.parametrize(
    ("rows", "memory", "group", "options", "reduction"),
    [(29, 2**20, 29, "plain", None), (28, 3800, 14, "plain", "mean"), (29, 3800, 15, "all", None)],
)
def test_any_memory_gives_the_same(storing, rows, memory, group, options, reduction):
    """All rows in one group of chunks of 4, or two groups of them, which leave rows over or not."""
    floats, labels = batch(rows=rows, width=6)
    chosen = OPTIONS[options] | {"reduction": reduction}
    ours = partial(linear_softmax_focal_loss, strategy="rows", chunk=4, memory=memory)
    assert planned((rows, 6, CLASSES), "float32", "rows", 4, memory) == ("rows", 4, group)
    assert_same(everything(ours, floats, labels, **chosen), of_logits(floats, labels, **chosen))


@pytest.mark.parametrize("rows", [28, 29])
def test_too_little_memory_to_store_anything_is_the_program_without_any(storing, rows):
    nothing, little = (planned((rows, 6, CLASSES), "float32", "rows", 4, memory) for memory in (None, 1))
    assert nothing == little == ("rows", 4, 4)


@every_pair(kind=KINDS, options=OPTIONS, reduction=["mean", None])
def test_bfloat16_is_as_accurate_as_its_matmuls(form, options, reduction):
    """Compared with the logits of the same numbers in float32; each matmul rounds its operands.

    A kernel in float32 has its gradient in float32: the same, not rounded yet.
    """
    floats, labels = batch("bfloat16", rows=48, width=32)
    chosen = OPTIONS[options] | {"reduction": reduction}
    wanted = of_logits(jax.tree.map(np.float32, floats), labels, **chosen)
    ours = partial(linear_softmax_focal_loss, chunk=12, **form)
    found = everything(ours, floats, labels, **chosen)
    assert found["loss"].dtype == jnp.float32
    assert all(found[name].dtype == floats[name].dtype for name in floats)
    assert_same({name: np.float32(x) for name, x in found.items()}, wanted, 2 * tolerances.eps("bfloat16"))
    if options == "plain":
        mixed = floats | {name: np.float32(floats[name]) for name in ("kernel", "bias")}
        kernel = everything(ours, mixed, labels, **chosen)["kernel"]
        assert kernel.dtype == jnp.float32
        np.testing.assert_array_equal(kernel.astype("bfloat16"), found["kernel"])


@pytest.mark.parametrize("reduction", ["mean", None])
def test_float16_keeps_small_gradients(form, reduction):
    """A loss scale lifts them before they are float16, not after.

    In two programs, as in one XLA keeps the digits that a narrow dtype between its kernels would lose.
    """
    floats, labels = batch("float16", rows=48, width=32)
    small = {"inputs": 2.0**-10, "kernel": 2.0**-10, "sample_weight": 1e-4}
    floats |= {name: (x * floats[name]).astype(floats[name].dtype) for name, x in small.items()}
    scale = 2.0**14
    ours = partial(linear_softmax_focal_loss, chunk=12, reduction=reduction, **form)
    _, pull_back, _ = jax.vjp(partial(total, ours, labels=labels), floats, has_aux=True)
    (found,) = jax.jit(pull_back)(np.float32(scale))
    wanted = of_logits(jax.tree.map(np.float32, floats), labels, reduction=reduction, scale=scale)
    for name in ("kernel", "inputs"):
        truth = np.asarray(wanted[name], np.float64)
        tolerances.assert_close(found[name], truth, rtol=0.05, scale=np.max(np.abs(truth)), label=name)


@partial(jax.jit, static_argnums=0)
def products(loss, floats, labels, push):
    """The second derivatives in the direction `push`, forward and reverse over reverse."""

    def gradient(floats):
        def total(floats):
            given = dict(floats)
            found = loss(given.pop("inputs"), given.pop("kernel"), labels, **given)
            return jnp.sum(found if found.ndim == 0 else found * factors(found))

        return jax.grad(total)(floats)

    _, forward = jax.linearize(gradient, floats)
    (reverse,) = jax.linear_transpose(forward, floats)(push)
    return {f"forward {name}": x for name, x in forward(push).items()} | reverse


def test_second_derivatives(form):
    floats, labels = batch()
    push = jax.tree.map(np.cos, floats)
    # Operands, not constants: those XLA:CPU of JAX 0.8.0 folds into wrong numbers.
    ours = partial(linear_softmax_focal_loss, **form, chunk=6, reduction=None)
    wanted = products(plain, floats, labels, push)
    assert_same(products(ours, floats, labels, push), wanted, tolerances.rtol("hessian"))


def test_an_example_without_a_cotangent_is_silent(form):
    (floats, labels), (bad, _) = batch(), batch()
    bad["inputs"][6] = np.nan
    ours = partial(linear_softmax_focal_loss, labels=labels, **form, chunk=4, reduction=None)
    keep = np.arange(ROWS) != 6

    def total(inputs, kernel):
        return jnp.sum(jnp.where(keep, ours(inputs, kernel), 0))

    gradients = jax.jit(jax.grad(total, (0, 1)))
    found, wanted = (gradients(x["inputs"], x["kernel"]) for x in (bad, floats))
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(got, want)


def test_classes_of_padding_are_silent(strategy):
    """A bias of -inf takes a class out, also where a whole chunk has no other."""
    floats, labels = batch()
    labels %= 20
    wanted = of_logits(floats, labels, where=np.arange(CLASSES) < 20, z_loss=1e-2)
    floats["bias"][20:] = -np.inf
    ours = partial(linear_softmax_focal_loss, strategy=strategy, chunk=4)
    assert_same(everything(ours, floats, labels, z_loss=1e-2), wanted)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_that_is_no_class_has_the_loss_nan(strategy, label):
    floats, labels = batch()
    ours = partial(linear_softmax_focal_loss, strategy=strategy, chunk=4, reduction=None)
    labels[2] = label
    losses = jax.jit(ours)(floats["inputs"], floats["kernel"], labels)
    np.testing.assert_array_equal(np.isnan(losses), np.arange(ROWS) == 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.uint32])
def test_labels_of_any_integer_dtype(strategy, dtype):
    floats, labels = batch()
    ours = partial(linear_softmax_focal_loss, floats["inputs"], floats["kernel"], strategy=strategy, chunk=4)
    assert ours(labels.astype(dtype)) == ours(labels)
    losses = ours(jnp.array([3, 255] + (ROWS - 2) * [0], dtype=np.uint8), reduction=None)
    assert np.isnan(losses[1]) and np.isfinite(losses[0])


EXAMPLES = {"none": (0,), "one": (), "of two axes": (2, 3)}


@every_pair(examples=EXAMPLES, strategy=STRATEGIES, reduction=["mean", None])
def test_examples_of_any_shape(examples, strategy, reduction):
    """None; one; and many of many axes, which are flattened before."""
    shape = EXAMPLES[examples]
    inputs, kernel = np.ones((*shape, WIDTH), np.float32), np.ones((WIDTH, CLASSES), np.float32)
    labels = np.zeros(shape, np.int32)
    ours = partial(linear_softmax_focal_loss, strategy=strategy, reduction=reduction, chunk=2)

    def total(inputs):
        losses = ours(inputs, kernel, labels)
        return jnp.sum(losses), losses

    gradient, losses = jax.jit(jax.grad(total, has_aux=True))(inputs)
    assert losses.shape == (shape if reduction is None else ())
    assert gradient.shape == inputs.shape
    assert np.all(np.isfinite(losses)) and np.all(np.isfinite(gradient))


def test_nothing_counted_has_the_mean_0(strategy):
    floats, labels = batch()
    ours = partial(linear_softmax_focal_loss, ignore_index=-1, strategy=strategy, chunk=4)
    value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1)))(
        floats["inputs"], floats["kernel"], np.full_like(labels, -1)
    )
    assert value == 0 and not any(np.any(g) for g in gradients)


def test_transforms(form):
    """vmap over examples of their own, remat, and a scan over steps."""
    floats, labels = batch()
    ours = jax.checkpoint(partial(linear_softmax_focal_loss, chunk=4, **form))
    x, kernel = np.stack([floats["inputs"], np.sin(floats["inputs"])]), floats["kernel"]

    def step(x):
        return jax.vmap(jax.grad(ours, (0, 1)), (0, None, None))(x, kernel, labels)

    given = np.stack([x, -x])
    found = jax.jit(partial(jax.lax.map, step))(given)
    ones = {"sample_weight": np.ones(ROWS), "bias": np.zeros(CLASSES), "alpha": 1.0, "gamma": 2.0}
    rest = {name: np.float32(x) for name, x in ones.items()} | {"kernel": kernel}
    for at in np.ndindex(2, 2):
        wanted = of_logits(rest | {"inputs": given[at]}, labels)
        for got, name in zip(found, ("inputs", "kernel"), strict=True):
            np.testing.assert_allclose(got[at], wanted[name], rtol=1e-5, atol=1e-7)


def test_the_value_alone_costs_one_matmul(strategy):
    floats, labels = batch()
    ours = partial(linear_softmax_focal_loss, labels=labels, strategy=strategy, chunk=1000)
    assert str(jax.make_jaxpr(ours)(floats["inputs"], floats["kernel"])).count("dot_general[") == 1


@pytest.mark.parametrize(
    ("loss", "labels", "strategy"),
    [
        (linear_softmax_focal_loss, [0, 3, 3], "rows"),
        (focaljax.linear_sigmoid_focal_loss, [[0, 1], [3, -1], [3, 3]], "classes"),
    ],
    ids=["softmax", "sigmoid"],
)
def test_a_schedule_is_one_trace(strategy, loss, labels, monkeypatch):
    """Of the caller's program and of ours; also without `jit`, for numbers of every kind."""
    ours, theirs = [], []
    traced = layer_operands._options
    monkeypatch.setattr(layer_operands, "_options", lambda *given: ours.append(1) or traced(*given))
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), "float32") for shape in ((3, 4), (4, 7)))
    call = partial(loss, x, kernel, jnp.array(labels), label_smoothing=0.1, strategy=strategy, chunk=2)
    kinds = (0, 1.0, np.float32(2.0), np.float64(2.5), jnp.float32(3.0), jnp.asarray(4))
    found = [float(call(gamma=gamma, alpha=float(gamma) / 8)) for gamma in kinds]

    @jax.jit
    def step(gamma):
        theirs.append(1)
        return call(gamma=gamma, alpha=gamma / 8)

    again = [float(step(jnp.float32(gamma))) for gamma in kinds]
    np.testing.assert_allclose(again, found, rtol=tolerances.rtol("same"))
    assert len(set(found)) == len(kinds)
    assert len(ours) == len(theirs) == 1


@every_pair(loss=["softmax", "softmax with aux", "sigmoid"], reduction=["mean", None], strategy=STRATEGIES)
def test_the_precision_is_that_of_every_matmul(strategy, loss, reduction):
    """Of three, or of four where the logits are made again; what is logged beside the loss needs none."""
    floats, labels = batch()
    options = {"strategy": strategy, "reduction": reduction, "chunk": 1000, "precision": "highest"}
    call = partial(linear_softmax_focal_loss, labels=labels)
    if loss == "softmax with aux":
        call = partial(call, has_aux=True)
    elif loss == "sigmoid":
        call = partial(focaljax.linear_sigmoid_focal_loss, labels=labels)

    def total(x, kernel):
        return jax.tree.map(jnp.sum, call(x, kernel, **options))

    gradient = jax.grad(total, (0, 1), has_aux="aux" in loss)
    text = str(jax.make_jaxpr(gradient)(floats["inputs"], floats["kernel"]))
    one_sweep = strategy == "rows" or loss == "sigmoid"
    matmuls = 3 if reduction == "mean" and one_sweep else 4
    assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST") == matmuls


# What a trainer needs beside the loss.


REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none")
WEIGHTS = {"none": None, "one": (), "per row": (4, 1), "per column": (1, 3), "each": (4, 3)}


@pytest.mark.parametrize(
    ("reduction", "weights", "strategy"),
    [(reduction, "each", "rows") for reduction in REDUCTIONS]
    + [(reduction, "none", "classes") for reduction in REDUCTIONS]
    + [("mean_with_sample_weight", weights, "classes") for weights in ("one", "per row", "per column")],
)
def test_reductions_are_those_of_reduce_loss(reduction, weights, strategy):
    rng = np.random.default_rng(0)
    x, kernel = np.float32(rng.normal(size=(4, 3, WIDTH))), np.float32(rng.normal(size=(WIDTH, CLASSES)))
    labels = rng.integers(0, CLASSES, (4, 3))
    shape = WEIGHTS[weights]
    weights = None if shape is None else np.asarray(rng.integers(0, 3, shape))
    options = {"gamma": 1.0, "ignore_index": int(labels[1, 1])}
    losses = focaljax.softmax_focal_loss_with_integer_labels(x @ kernel, labels, **options)
    wanted = focaljax.reduce_loss(losses, weights, reduction, where=labels != options["ignore_index"])
    options |= {"sample_weight": weights, "reduction": reduction, "strategy": strategy, "chunk": 6}
    found = linear_softmax_focal_loss(x, kernel, labels, **options)
    tolerances.assert_close(found, np.asarray(wanted), rtol=tolerances.rtol("same"))


def test_a_mean_by_a_normalizer(strategy):
    """Microbatches add up: each divides by the number of all tokens."""
    floats, labels = batch(rows=16)
    ours = partial(linear_softmax_focal_loss, strategy=strategy, chunk=4, ignore_index=3)
    tokens = np.sum(labels != 3)

    @jax.jit
    @jax.value_and_grad
    def part(floats, i):
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=i, slice_size=8)
        some = {n: cut(x) if x.shape[:1] == (16,) else x for n, x in floats.items()}
        return ours(some.pop("inputs"), some.pop("kernel"), cut(labels), normalizer=tokens, **some)

    loss, gradients = jax.tree.map(np.add, *(part(floats, i) for i in (0, 8)))
    assert_same(gradients | {"loss": loss}, of_logits(floats, labels, ignore_index=3))


@jax.jit
def of_soft_labels(floats, labels, weigh, smoothing):
    """The losses of a label per class, and the gradients of their sum weighed by `weigh`."""

    def total(floats, labels):
        z = floats["inputs"] @ floats["kernel"] + floats["bias"][None, :]
        options = {"alpha": floats["alpha"], "gamma": floats["gamma"], "label_smoothing": smoothing}
        losses = floats["sample_weight"] * focaljax.softmax_focal_loss(z, labels, **options)
        return jnp.sum(losses * weigh), losses

    return jax.value_and_grad(total, (0, 1), has_aux=True)(floats, labels)


@every_pair(strategy=STRATEGIES, reduction=["mean", None], smoothing=[0.0, 0.1])
def test_soft_labels_of_few_classes(strategy, reduction, smoothing):
    """Those of `softmax_focal_loss`, which takes one label per class; also by the weights of the labels."""
    floats, _ = batch()
    rng = np.random.default_rng(0)
    indices = rng.integers(0, CLASSES, (ROWS, 4))
    indices[0, 1] = indices[0, 0]  # both parts count
    indices[1, 3] = -1
    shares = rng.uniform(0, 1, (ROWS, 4)).astype("float32")
    shares[1, 3] = 0
    labels, rows = np.zeros((ROWS, CLASSES), np.float32), np.arange(ROWS)[:, None]
    np.add.at(labels, (rows, np.maximum(indices, 0)), shares)

    def ours(inputs, kernel, labels, *, shares, **options):
        options |= {"strategy": strategy, "chunk": 6, "reduction": reduction, "label_smoothing": smoothing}
        return linear_softmax_focal_loss(inputs, kernel, labels, label_weights=shares, **options)

    found = everything(ours, floats | {"shares": shares}, indices)
    weigh = factors(rows) if reduction is None else np.full(ROWS, np.float32(1 / ROWS))
    (mean, losses), (wanted, by_labels) = of_soft_labels(floats, labels, weigh, np.float32(smoothing))
    wanted |= {"loss": losses if reduction is None else mean}
    wanted["shares"] = np.take_along_axis(np.asarray(by_labels), indices, 1)[indices >= 0]
    assert_same(found | {"shares": np.asarray(found["shares"])[indices >= 0]}, wanted)


def test_a_soft_label_outside_the_classes_has_no_answer(strategy):
    losses = linear_softmax_focal_loss(
        jnp.ones((2, 3)),
        jnp.ones((3, 5)),
        jnp.array([[0, 7], [1, -1]]),
        label_weights=[[0.5, 0.5], [1.0, 0.0]],
        reduction=None,
        strategy=strategy,
    )
    np.testing.assert_array_equal(np.isnan(losses), [True, False])


@every_pair(strategy=STRATEGIES, reduction=["mean", None], options=["plain", "smoothed", "masked"])
def test_accuracy_and_logsumexp_come_beside_the_loss(strategy, reduction, options):
    floats, labels = batch()
    labels[labels == 5] = 6
    kept = np.arange(CLASSES) != 5
    x, kernel = floats["inputs"], floats["kernel"]
    z = np.where(kept | (options != "masked"), x @ kernel, -np.inf)
    labels[::2] = z.argmax(1)[::2]
    given = {"plain": {}, "smoothed": {"label_smoothing": 0.1}, "masked": {"where": kept}}[options]
    call = partial(linear_softmax_focal_loss, ignore_index=3, strategy=strategy, chunk=4, reduction=reduction)
    call = partial(call, kernel=kernel, labels=labels, **given)

    @jax.jit
    def both(x):
        def total(x, has_aux):
            loss, aux = call(x, has_aux=True) if has_aux else (call(x), None)
            return jnp.sum(loss), (loss, aux)

        return [jax.grad(total, has_aux=True)(x, has_aux) for has_aux in (True, False)]

    (gradient, (loss, aux)), (gradient_alone, (loss_alone, _)) = both(x)
    np.testing.assert_array_equal(loss, loss_alone)
    np.testing.assert_array_equal(gradient, gradient_alone)
    counts = labels != 3
    np.testing.assert_array_equal(aux.correct, (z.argmax(1) == labels) & counts)
    wanted = np.where(counts, np.log(np.exp(np.float64(z)).sum(1)), 0)
    np.testing.assert_allclose(aux.logsumexp, wanted, rtol=tolerances.rtol("same"))


# Which strategy and which chunk.


@pytest.mark.parametrize(
    ("shape", "chosen"),
    {
        (4096, 512, 131_072): "rows",
        (65_536, 512, 1000): "rows",
        (8192, 256, 1_048_576): "classes",  # a chunk of rows would pay for its pass over the kernel's sum
        (100, 256, 1_048_576): "rows",  # but there is one pass only
        (8192, 8192, 262_144): "classes",  # the sum takes 8 GiB
    }.items(),
    ids=str,
)
def test_what_is_chunked(shape, chosen):
    assert planned(shape, "float32", None, None, None) == planned(shape, "float32", chosen, None, None)
    assert planned(shape, "float32", None, None, None).strategy == chosen


def test_what_is_planned_is_the_program():
    def text(**options):
        loss = partial(linear_softmax_focal_loss, **options)
        return str(jax.make_jaxpr(loss)(*operands((8192, 256, 1_048_576))))

    assert text() == text(strategy="classes") != text(strategy="rows")


def planned(shape, dtype, *choices):
    """What is chunked, its chunks and groups, of a layer for softmax losses."""
    n, d, c = shape
    x, kernel, logits = (
        jax.ShapeDtypeStruct(*x) for x in (((n, d), dtype), ((d, c), dtype), ((n, c), "float32"))
    )
    return plan.plan(_arguments.Layer(x, kernel, None, None, logits), *choices, plan.SOFTMAX)


@pytest.mark.parametrize(
    ("shape", "memory", "chosen"),
    [
        ((8192, 4096, 131_072), None, ("rows", 512, 8192)),  # 2.15 GB of gradients, 0.27 of logits
        ((8192, 4096, 131_072), 2_300_000_000, ("rows", 512, 8192)),  # these where 1.07 of results will be
        ((8192, 256, 131_072), 2_300_000_000, ("rows", 512, 4096)),  # which here are 0.07
        ((8192, 4096, 131_072), 1_000_000_000, ("classes", 1024, 1024)),
        ((8192, 4096, 131_072), 300_000_000, ("classes", 1024, 1024)),
        ((65_536, 4096, 131_072), None, ("rows", 512, 4096)),  # 2.15 GB of sums, 1.07 of gradients
        ((0, 8, 10), None, ("rows", 1, 1)),
        ((8192, 8192, 262_144), None, ("rows", 512, 8192)),  # 4.29 GB of gradients, and no sum of 8.6
    ],
    ids=str,
)
def test_what_is_stored_in_16_bits(alone, shape, memory, chosen):
    assert planned(shape, "bfloat16", None, None, memory) == chosen


def operands(shape):
    n, d, c = shape
    return [jax.ShapeDtypeStruct(*x) for x in (((n, d), "float32"), ((d, c), "float32"), ((n,), "int32"))]


def test_a_million_classes_fit_in_4_gb():
    """Kernel and gradient take 2.1 GB of it; `python -m bench linear` runs it and measures the process."""
    loss = jax.value_and_grad(linear_softmax_focal_loss, (0, 1))
    memory = jax.jit(loss).lower(*operands((8192, 256, 1_048_576))).compile().memory_analysis()
    assert memory is not None
    parts = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
    assert sum(parts) <= 2.5e9  # Python and JAX themselves take 0.3 GB


@pytest.mark.parametrize(("symbols", "chunk"), [("n", 4), ("c", None), ("n, c", None), ("n, d, c", 4)])
def test_a_program_is_exported_for_shapes_to_come(symbols, chunk):
    floats, labels = batch()
    sizes = dict(zip(symbols.split(", "), jax.export.symbolic_shape(symbols), strict=True))
    n, d, c = (sizes.get(name, size) for name, size in zip("ndc", (ROWS, WIDTH, CLASSES), strict=True))
    shapes = {
        "inputs": (n, d),
        "kernel": (d, c),
        "bias": (c,),
        "sample_weight": (n,),
        "alpha": (c,),
        "gamma": (),
    }
    given = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    ours = program(partial(linear_softmax_focal_loss, chunk=chunk), **OPTIONS["all"])
    exported = jax.export.export(ours)(given, jax.ShapeDtypeStruct((n,), "int32"))
    assert_same(exported.call(floats, labels), of_logits(floats, labels, **OPTIONS["all"]))


def test_classes_in_chunks_need_their_number():
    (c,) = jax.export.symbolic_shape("c")
    x, kernel, labels = operands((ROWS, WIDTH, c))
    with pytest.raises(ValueError, match='`strategy` "classes" needs a known number of classes, got c'):
        jax.export.export(jax.jit(partial(linear_softmax_focal_loss, strategy="classes")))(x, kernel, labels)


WRONG = {
    "integer inputs": (
        {"inputs": jnp.zeros((2, 3), jnp.int32)},
        TypeError,
        "`inputs` must be floating, got int32",
    ),
    "kernel of rank 1": ({"kernel": jnp.zeros(3)}, ValueError, r"`kernel` must have the shape \[D, C\]"),
    "another width": ({"kernel": jnp.zeros((4, 5))}, ValueError, r"`inputs` must have the shape \[..., 4\]"),
    "no class": ({"kernel": jnp.zeros((3, 0))}, ValueError, "at least one class"),
    "bias": (
        {"bias": jnp.zeros(4)},
        ValueError,
        r"`bias` must have the shape \[5\] for `kernel`, got \(4,\)",
    ),
    "labels of another shape": (
        {"labels": jnp.zeros(3, jnp.int32)},
        ValueError,
        r"`labels` must have shape \(2,\)",
    ),
    "floating labels": ({"labels": jnp.zeros(2)}, TypeError, "`labels` must be integer class indices"),
    "label out of range": ({"labels": [0, 5]}, ValueError, r"`labels` must be in \[0, 5\), got 5"),
    "sample_weight": (
        {"sample_weight": jnp.ones(5)},
        ValueError,
        r"`sample_weight` must be a scalar or fit the shape of the losses, \(2,\)",
    ),
    "reduction": (
        {"reduction": "average"},
        ValueError,
        "`reduction` must be one of .*'none'",
    ),
    "strategy": ({"strategy": "columns"}, ValueError, "`strategy` must be one of"),
    "chunk": ({"chunk": 0}, ValueError, "`chunk` must be at least 1, got 0"),
    "memory": ({"memory": 0}, ValueError, "`memory` must be at least 1, got 0"),
    "memory in GB": ({"memory": 2.3}, TypeError, "`memory` must be an int or None, got float"),
    "fraction of a chunk": ({"chunk": 1.5}, TypeError, "`chunk` must be an int or None, got float"),
    "alpha per logit": ({"alpha": jnp.ones((2, 5))}, ValueError, "`alpha` must be a scalar"),
    "alpha": ({"alpha": jnp.ones(4)}, ValueError, "`alpha` must have one entry per class, 5"),
    "negative gamma": ({"gamma": -1.0}, ValueError, "`gamma` must be at least 0"),
    "smoothing": ({"label_smoothing": 2.0}, ValueError, r"`label_smoothing` must be in \[0, 1\]"),
    "z_loss": ({"z_loss": jnp.ones(2)}, ValueError, "`z_loss` must be a scalar"),
    "negative z_loss": ({"z_loss": -1.0}, ValueError, "`z_loss` must be at least 0"),
    "cap": ({"logit_soft_cap": 0.0}, ValueError, "`logit_soft_cap` must be positive"),
    "array as cap": ({"logit_soft_cap": jnp.ones(())}, TypeError, "`logit_soft_cap` must be a Python number"),
    "ignore_index": ({"ignore_index": 1.0}, TypeError, "`ignore_index` must be an int or None"),
    "precision": ({"precision": 3}, TypeError, "`precision` must be a JAX matmul precision"),
    "axis_name": ({"axis_name": "model"}, ValueError, "`axis_name` must name an axis"),
    "label_weights of another shape": (
        {"label_weights": jnp.ones((2, 2))},
        ValueError,
        r"`label_weights` and `labels` must have one shape, \(2, 'L'\).* got \(2, 2\) and \(2,\)",
    ),
    "negative label_weights": (
        {"labels": [[0], [1]], "label_weights": [[-1.0], [1.0]]},
        ValueError,
        "`label_weights` must be at least 0",
    ),
    "has_aux": ({"has_aux": 1}, TypeError, "`has_aux` must be a bool"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(case):
    changed, error, message = WRONG[case]
    given = {"inputs": jnp.zeros((2, 3)), "kernel": jnp.zeros((3, 5)), "labels": jnp.zeros(2, jnp.int32)}
    with pytest.raises(error, match=message):
        linear_softmax_focal_loss(**(given | changed))


@jax.jit
@jax.grad
def slopes_of_logits(z, labels, smoothing):
    options = {"gamma": 1.0, "label_smoothing": smoothing}
    return jnp.sum(focaljax.softmax_focal_loss_with_integer_labels(z, labels, **options))


@pytest.mark.parametrize(("strategy", "smoothing"), [("rows", 0.0), ("classes", 0.1)])
def test_the_gradient_of_a_cap_does_not_cancel(strategy, smoothing):
    """1 - tanh(z / c)^2 is sech(z / c)^2, also where tanh is 1; the layer is the identity."""
    cap = 30.0
    raw = np.float32([[10, 0, 5], [120, 0, -50], [180, 100, 0], [240, 1, 2], [-240, 3, 200], [500, -500, 90]])
    labels = np.array([0, 1, 2, 1, 0, 2])

    def total(inputs):
        options = {"gamma": 1.0, "label_smoothing": smoothing}
        layer = {"logit_soft_cap": cap, "reduction": "sum", "strategy": strategy, "chunk": 2}
        return linear_softmax_focal_loss(inputs, np.eye(3, dtype=np.float32), labels, **layer, **options)

    z = np.float64(raw)
    with jax.enable_x64(True):
        by_capped = slopes_of_logits(cap * np.tanh(z / cap), labels, smoothing)
    want = np.asarray(by_capped) / np.cosh(z / cap) ** 2
    # exp(-2 z / c) has the relative error of its argument, up to 2 * 500 / 30, in units of u; and `capped` is
    # rounded to float32 where the loss sees it: up to 30 u absolute in each of two logits.
    rtol = (64 + 2 * 2 * 500 / 30 + 2 * 30) * 2**-24
    scale = np.abs(want) + np.abs(want).max(1, keepdims=True) * (smoothing > 0)
    tolerances.assert_close(jax.jit(jax.grad(total))(raw), want, rtol=rtol, scale=scale)
