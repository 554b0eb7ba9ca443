"""Embedding dropout: one draw a word, against a dense mask over the whole weight."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as theirs
from torch import nn
from torch.func import grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import dropseed.torch as dst
from dropseed import Key, Rate, keep
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.torch.embedding import EmbeddingDropout, embedding_dropout
from generators import seeds_drawn

V, D = 21, 4
WORDS = torch.tensor([[3, 0, 3, 20], [7, 3, 1, 0], [20, 2, 2, 9]])
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def dense(words, weight, p, key, scaling="inverted"):
    """The paper's picture: rows of the weight are dropped, then looked up."""
    mask = torch.tensor(keep(key, p, V))[:, None]
    compute = torch.promote_types(weight.dtype, torch.float32)
    factor = torch.tensor(Rate(p).factors(scaling).training, dtype=compute)
    scaled = (weight.to(compute) * factor).to(weight.dtype)
    return torch.where(mask, scaled, torch.zeros((), dtype=weight.dtype))[words]


# ---- values and gradients --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scaling", ["inverted", "original", "none"])
@pytest.mark.parametrize("p", [0.3, 0.5, 0.9, 1.0])
def test_equals_a_dense_mask(dtype, scaling, p, key, same_bits):
    weights = [torch.randn(V, D).to(dtype).requires_grad_()]
    weights.append(weights[0].detach().clone().requires_grad_())
    outputs = [
        embedding_dropout(WORDS, weights[0], p, key=key, scaling=scaling),
        dense(WORDS, weights[1], p, key, scaling),
    ]
    assert same_bits(*outputs)
    v = torch.randn(*WORDS.shape, D).to(dtype)
    for output in outputs:
        output.backward(v)
    tolerance = 1e-6 if dtype in (torch.float32, torch.float64) else 0.02  # sums in another order
    assert torch.allclose(weights[0].grad, weights[1].grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(), (5,), (0,), (2, 3), (3, 0, 2), (2, 1, 3)])
def test_words_of_any_shape(ids, shape, key, same_bits):
    words, weight = torch.randint(V, shape).to(ids), torch.randn(V, D)
    output = embedding_dropout(words, weight, 0.5, key=key)
    assert output.shape == (*shape, D)
    assert same_bits(output, dense(words.long(), weight, 0.5, key))


def test_all_occurrences_are_dropped_alike():
    words, weight = torch.arange(V).repeat(3), torch.ones(V, D)
    output = embedding_dropout(words, weight)
    rows = output.reshape(3, V, D)
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    assert set(rows.unique().tolist()) == {0, 2}
    assert bool((rows == rows[..., :1]).all())
    assert not torch.equal(output, embedding_dropout(words, weight))


def test_gradcheck(key):
    weight = torch.randn(V, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda w: embedding_dropout(WORDS, w, 0.3, key=key) ** 2,
        weight,
        check_forward_ad=True,
        check_batched_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        lambda w: embedding_dropout(WORDS, w, 0.3, key=key) ** 3, weight
    )


def test_a_dropped_word_may_be_nan():
    key = Key(1)
    mask = torch.tensor(keep(key, 0.5, V))
    weight = torch.where(mask[:, None], torch.ones(V, D), torch.nan).requires_grad_()
    weight.data[(~mask).nonzero()[0]] = torch.inf
    output = embedding_dropout(torch.arange(V), weight, 0.5, key=key)
    assert torch.equal(output, torch.where(mask[:, None], 2.0, 0.0).expand(V, D))
    output.backward(torch.where(mask[:, None], 1.0, torch.inf).expand(V, D))
    assert torch.equal(weight.grad, output)


def test_complex_weights(key):
    weight = torch.randn(V, D, dtype=torch.complex64)
    output = embedding_dropout(WORDS, weight, 0.5, key=key)
    want = torch.where(torch.tensor(keep(key, 0.5, V))[:, None], weight * 2, 0)[WORDS]
    assert torch.equal(output, want)


def test_backward_keeps_two_numbers_a_token(key):
    weight = torch.randn(V, 64, requires_grad=True)

    def kept(call):
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call()
        return sizes

    plain = kept(lambda: theirs.embedding(WORDS, weight))
    ours = kept(lambda: embedding_dropout(WORDS, weight, key=key))
    assert sum(plain) > 0
    assert max(ours) <= WORDS.numel()
    assert sum(ours) <= sum(plain) + 2 * WORDS.numel()


# ---- when nothing is dropped -----------------------------------------------------------------


def test_inference_and_rates_0_and_1(same_bits):
    weight = torch.randn(V, D)
    plain = theirs.embedding(WORDS, weight)
    assert same_bits(embedding_dropout(WORDS, weight, 0.3, training=False), plain)
    assert same_bits(embedding_dropout(WORDS, weight, 0.0), plain)
    assert same_bits(embedding_dropout(WORDS, weight, 1.0), torch.zeros_like(plain))
    scaled = embedding_dropout(WORDS, weight, 0.25, training=False, scaling="original")
    assert same_bits(scaled, plain * 0.75)
    none = embedding_dropout(WORDS, weight, 0.25, training=False, scaling="none")
    assert same_bits(none, plain)


@pytest.mark.parametrize("make", [lambda p: p, torch.tensor])
def test_seeds(make):
    layer = EmbeddingDropout(nn.Embedding(V, D))
    tensor = isinstance(make(0.5), torch.Tensor)
    for p, count in ((0.0, int(tensor)), (0.3, 1), (1.0, int(tensor))):
        layer.p = make(p)
        assert seeds_drawn(lambda: layer.train()(WORDS)) == count
        assert seeds_drawn(lambda: layer.eval()(WORDS)) == 0
    layer.train().p = 0.5
    dst.set_key(layer, 0)
    assert seeds_drawn(lambda: layer(WORDS)) == 0


def test_a_rate_that_is_a_tensor(key, same_bits):
    weight = torch.randn(V, D)
    for p in (0.0, 0.3, 1.0):
        for training in (True, False):
            for scaling in ("inverted", "original"):
                results = [
                    embedding_dropout(WORDS, weight, rate, training, key=key, scaling=scaling)
                    for rate in (p, torch.tensor(p, dtype=torch.float64))
                ]
                assert same_bits(*results)


# ---- the layer -------------------------------------------------------------------------------

SETTINGS = {
    "plain": {},
    "padding": {"padding_idx": 3},
    "padding from the end": {"padding_idx": -1},
    "largest norm": {"max_norm": 1.0, "norm_type": 1.0},
    "by frequency": {"scale_grad_by_freq": True},
    "sparse": {"sparse": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_embedding_keeps_its_settings(name, same_bits):
    embedding = nn.Embedding(V, D, **SETTINGS[name])
    plain, weight = copy.deepcopy(embedding), embedding.weight.detach().clone()
    layer = EmbeddingDropout(embedding, 0.3)
    dst.set_key(layer, 7)
    mask = torch.tensor(keep(Key(7).at(""), 0.3, V))[WORDS][..., None]
    output = layer(WORDS)
    want = torch.where(mask, plain(WORDS) * Rate(0.3).scale, 0.0)
    by_function = embedding_dropout(WORDS, weight, 0.3, key=layer.key, **SETTINGS[name])
    assert same_bits(output, want, by_function)
    assert same_bits(embedding.weight, plain.weight, weight)  # renormalised, or as it was
    for result in (output, want):
        result.square().sum().backward()
    gradients = [embedding.weight.grad, plain.weight.grad]
    assert gradients[0].is_sparse == gradients[1].is_sparse == (name == "sparse")
    assert torch.allclose(*(g.to_dense() if g.is_sparse else g for g in gradients))
    assert same_bits(layer.eval()(WORDS), plain(WORDS))


def test_the_function_hands_the_settings_on():
    weight = torch.randn(V, D).requires_grad_()
    embedding_dropout(WORDS, weight, 0.0, sparse=True, padding_idx=3).sum().backward()
    assert weight.grad.is_sparse
    assert not weight.grad.to_dense()[3].any()
    assert weight.grad.to_dense()[2].any()


def test_hooks_of_the_embedding_are_called():
    embedding = nn.Embedding(V, D)
    embedding.register_forward_hook(lambda module, args, output: output + 100)
    output = EmbeddingDropout(embedding)(torch.arange(V)).detach()
    assert 0 < int((output == 0).sum()) < output.numel()
    assert float(output[output != 0].min()) > 150


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_state(copied):
    layer = EmbeddingDropout(nn.Embedding(V, D), 0.3, scaling="original")
    assert repr(layer) == (
        "EmbeddingDropout(\n  p=0.3, scaling='original'\n  (embedding): Embedding(21, 4)\n)"
    )
    assert "scaling" not in repr(EmbeddingDropout(nn.Embedding(V, D)))
    for key in (None, 3):
        dst.set_key(layer, key)
        assert list(layer.state_dict()) == ["embedding.weight"]
        twin = copied(layer)
        assert repr(twin) == repr(layer)
        assert torch.equal(twin.eval()(WORDS), layer.eval()(WORDS))
        if key is not None:
            assert torch.equal(twin.train()(WORDS), layer.train()(WORDS))


def test_the_key_of_a_site(same_bits):
    net = nn.Sequential(EmbeddingDropout(nn.Embedding(V, D), 0.5), nn.Linear(D, 2))
    assert dst.set_key(net, 9, 4) == 1
    want = dense(WORDS, net[0].embedding.weight, 0.5, Key(9, step=4).at("0"))
    assert same_bits(net[0](WORDS), want)
    assert same_bits(net[0](WORDS), want)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("keyed", [False, True])
def test_checkpointing_replays_the_mask(use_reentrant, keyed):
    net = nn.Sequential(EmbeddingDropout(nn.Embedding(V, D)), nn.Linear(D, D))
    dst.set_key(net, 0 if keyed else None)
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        net.zero_grad()
        # Reentrant checkpoints want an input that requires grad: words can't.
        x = torch.ones((), requires_grad=True)

        def call(x):
            return net(WORDS) * x

        y = checkpoint(call, x, use_reentrant=use_reentrant) if checkpointed else call(x)
        y.square().sum().backward()
        gradients.append([x.grad, *(p.grad.clone() for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# ---- compiled, and functorch -----------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("rate", [0.5, torch.tensor(0.5)])
def test_compiled(keyed, rate):
    layer = EmbeddingDropout(nn.Embedding(V, D))
    layer.p = rate
    dst.set_key(layer, 1 if keyed else None)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True)
    output = call(WORDS)
    output.sum().backward()
    dropped = layer.embedding(WORDS) * 2
    assert bool(((output == dropped) | (output == 0)).all())
    assert torch.equal(layer.embedding.weight.grad[3] == 0, output[0, 0] == 0)
    if keyed:
        assert torch.equal(output, layer(WORDS))
    layer.eval()
    assert torch.equal(call(WORDS), layer.embedding(WORDS))


KEYS = torch.stack([dst.key_tensor(Key(2**64 - 1 - i, i, i)) for i in range(4)])


def test_vmap(words, same_bits):
    weight, batch = torch.randn(V, D), torch.randint(V, (4, 5))

    def f(ids, k=words):
        return embedding_dropout(ids, weight, 0.3, key=k)

    assert same_bits(vmap(f)(batch), torch.stack([f(ids) for ids in batch]))
    want = torch.stack([f(ids, k) for ids, k in zip(batch, KEYS, strict=True)])
    assert same_bits(vmap(f)(batch, KEYS), want)
    want = torch.stack([f(batch[0], k) for k in KEYS])
    assert same_bits(vmap(f, in_dims=(None, 0))(batch[0], KEYS), want)
    different = vmap(lambda _: embedding_dropout(torch.arange(V), weight), randomness="different")
    assert len({row.numpy().tobytes() for row in different(torch.zeros(4))}) == 4


def test_functorch_s_derivatives(words):
    weight, tangent = torch.randn(2, V, D)

    def f(w, k=words):
        return embedding_dropout(WORDS, w, 0.3, key=k)

    value, derivative = jvp(f, (weight,), (tangent,))
    assert torch.equal(value, f(weight))
    assert torch.equal(derivative, f(tangent))
    slopes = vmap(grad(lambda w, k: f(w, k).sum()), in_dims=(None, 0))(weight, KEYS)
    for slope, k in zip(slopes, KEYS, strict=True):
        leaf = weight.clone().requires_grad_()
        f(leaf, k).sum().backward()
        assert torch.allclose(slope, leaf.grad)


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"input": torch.ones(3)}, InvalidTypeError, "`input` must be an int64.*float32"),
        ({"input": torch.ones(3, dtype=torch.bool)}, InvalidTypeError, "`input` must.*bool"),
        ({"input": [1, 2]}, InvalidTypeError, "`input` must.*list"),
        ({"weight": torch.ones(V)}, InvalidValueError, r"`weight` must be \(V, D\).*\(21,\)"),
        ({"weight": torch.ones(V, D, 1)}, InvalidValueError, "`weight` must be"),
        ({"weight": torch.ones(V, D).long()}, InvalidTypeError, "`weight` must.*int64"),
        ({"weight": None}, InvalidTypeError, "`weight` must.*NoneType"),
        ({"p": 1.5}, InvalidValueError, "`p` must be in.*1.5"),
        ({"p": "half"}, InvalidTypeError, "`p` must be"),
        ({"p": torch.ones(2)}, InvalidTypeError, "`p` must be"),
        ({"key": 3}, InvalidTypeError, "`key` must be"),
        ({"scaling": "half"}, InvalidValueError, "`scaling` must be"),
    ],
)
def test_bad_input_changes_nothing(arguments, error, match):
    weight = torch.ones(V, D) * 5
    call = {"input": WORDS, "weight": weight, "max_norm": 1.0} | arguments
    before = torch.get_rng_state()
    with pytest.raises(error, match=match):
        embedding_dropout(**call)
    assert torch.equal(torch.get_rng_state(), before)
    assert bool((weight == 5).all())


def test_a_word_that_is_not_there():
    with pytest.raises(IndexError):
        embedding_dropout(torch.tensor([V]), torch.ones(V, D))
    with pytest.raises(IndexError):
        embedding_dropout(torch.tensor([-1]), torch.ones(V, D))


def test_bad_layers():
    with pytest.raises(InvalidTypeError, match=r"`embedding` must be.*Linear"):
        EmbeddingDropout(nn.Linear(3, 3))
    with pytest.raises(InvalidValueError, match=r"`p` must be in .*-0.1"):
        EmbeddingDropout(nn.Embedding(V, D), -0.1)
    with pytest.raises(InvalidValueError, match="`scaling`"):
        EmbeddingDropout(nn.Embedding(V, D), scaling="half")
    with pytest.raises(InvalidTypeError, match=r"`input` must be an int64"):
        EmbeddingDropout(nn.Embedding(V, D))(torch.ones(3))
