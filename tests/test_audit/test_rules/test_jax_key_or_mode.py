"""DS109: dropout in JAX with a key used twice, without a key, or in the wrong mode."""

import pytest

from dropseed.audit.rules import jax_key_or_mode
from test_audit.rule_cases import hits, marked, marked_in, messages, mutants, scanned

CODE = "DS109"

KEYS = [
    pytest.param(
        """
        def scaled(x, rng):
            return drop(x, 0.1, rng) + drop_path(x, 0.1, rng)  # wrong

        def drop(x, rate, rng):
            return x * (rate < jax.random.uniform(rng, x.shape)) / (1 - rate)

        def drop_path(x, rate, rng):
            return x * (rate < jax.random.uniform(rng)) / (1 - rate)
        """,
        id="functions of the file, one key twice",
    ),
    pytest.param(
        """
        class Dropout(hk.Module):
            def __call__(self, rng, parts):
                noises = []
                for part in parts:
                    noises.append(jax.random.bernoulli(rng, 0.5, part.shape))  # wrong
                return noises
        """,
        id="masks by hand, one key for every turn of a loop",
    ),
    pytest.param(
        """
        class Net(eqx.Module):
            def __call__(self, x, key):
                for i, (layer, d) in enumerate(zip(self.layers, self.dropouts)):
                    x = d(layer(x), key=key)  # wrong
                for i, d in enumerate(self.dropouts):
                    x = d(x, key=key)  # wrong
                return x
        """,
        id="layers that a loop goes through, one key",
    ),
    pytest.param(
        """
        def dropout(x, rate, rng):
            kept = jax.random.bernoulli(rng, 1 - rate, x.shape)
            return jnp.where(kept, x / (1 - rate), 0)

        def inner(x, rng):
            return dropout(jnp.tanh(x), 0.1, rng)

        def block(x, rng):
            return x + inner(x, rng)

        def network(x, depth, rng):
            for _ in range(depth):
                x = block(x, rng)  # wrong
            return x
        """,
        id="a function of the file, one key for every turn of a loop",
    ),
    pytest.param(
        """
        def block(x, key):
            x = hk.dropout(key, 0.1, x)
            return hk.dropout(key, 0.1, jax.nn.relu(x))  # wrong
        """,
        id="haiku, one key twice",
    ),
    pytest.param(
        """
        class Block(eqx.Module):
            def __init__(self):
                self.dropout = eqx.nn.Dropout(0.1)

            def __call__(self, x, key):
                x = self.dropout(x, key=key)
                if self.deep:
                    x = self.dropout(jnp.tanh(x), key=key)  # wrong
                return x
        """,
        id="Equinox, one key twice",
    ),
    pytest.param(
        """
        def forward(x, rng):
            for weight in weights:
                x = hk.dropout(rng, 0.1, x @ weight)  # wrong
            return x
        """,
        id="one key for every turn of a loop",
    ),
    pytest.param(
        """
        def block(x, key):
            key, first = jax.random.split(key)
            x = dropout(x, 0.1, key=first)
            x = dropout(x, 0.1, key=key)
            return my_dropout(x, 0.1, key=key)  # wrong
        """,
        id="functions of one's own",
    ),
    pytest.param(
        """
        def block(x, key, deep):
            if deep:
                x = hk.dropout(key, 0.1, x)
            else:
                x = jnp.tanh(x)
            return hk.dropout(key, 0.1, x)  # wrong
        """,
        id="perhaps, and then again",
    ),
]

MODES = [
    pytest.param(
        """
        class Mlp(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x, train=True):
                x = flax.linen.Dropout(0.1)(x, deterministic=train)  # wrong
                return flax.linen.Dropout(0.1)(x, deterministic=not train)
        """,
        id="the wrong way round",
    ),
    pytest.param(
        """
        def forward(model, x, deterministic):
            return model(x, train=deterministic)  # wrong
        """,
        id="a model that is told the wrong way round",
    ),
    pytest.param(
        """
        class Net(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x):
                x = flax.linen.Dropout(0.5)(x, deterministic=False)  # wrong
                return flax.linen.Dropout(0.5, deterministic=False)(x)  # wrong
        """,
        id="Flax, in a forward pass",
    ),
    pytest.param(
        """
        class Net(nnx.Module):
            def __init__(self, rngs):
                self.dropout = nnx.Dropout(0.5, rngs=rngs)

            def __call__(self, x):
                return self.dropout(x, deterministic=False)  # wrong
        """,
        id="NNX, in a forward pass",
    ),
    pytest.param(
        """
        class Net(eqx.Module):
            def __init__(self):
                self.dropout = eqx.nn.Dropout(0.1)

            def __call__(self, x, key):
                return self.dropout(x, key=key, inference=False)  # wrong
        """,
        id="Equinox, in a forward pass",
    ),
    pytest.param(
        """
        class Block(flax.linen.Module):
            def __call__(self, x):
                attend = flax.linen.SelfAttention(
                    8,
                    dropout_rate=0.1,
                    deterministic=False,  # wrong
                )
                return attend(x)
        """,
        id="attention",
    ),
    pytest.param(
        """
        def eval_step(state, batch):
            return state.apply_fn(state.params, batch, train=True)  # wrong

        def evaluate(model, params, batch, key):
            return model.apply(params, batch, deterministic=False, rngs={"dropout": key})  # wrong

        def predict(model, x):
            return model(x, inference=False)  # wrong
        """,
        id="evaluations",
    ),
]

NO_KEY = [
    pytest.param(
        """
        class Net(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x, train):
                return flax.linen.Dropout(0.5, deterministic=not train)(x)

        def main(x):
            model = Net()
            params = model.init(jax.random.key(0), x, train=False)
            return model.apply(params, x, train=True)  # wrong
        """,
        id="applied in training without keys",
    ),
]

WRONG = [*KEYS, *MODES, *NO_KEY]

RIGHT = [
    pytest.param(
        """
        def sample(rng, parts):
            return [jax.random.bernoulli(rng, p) for p in parts] + jax.random.bernoulli(rng, 0.5)
        """,
        id="draws that drop nothing",
    ),
    pytest.param(
        """
        class Net(eqx.Module):
            def __call__(self, x, keys, key):
                for drop, key in zip(self.dropouts, keys):
                    x = drop(x, key=key)
                for drop in self.dropouts:
                    key, own = jax.random.split(key)
                    x = drop(x, key=own)
                for weight, layer in zip(self.dropouts, self.layers):
                    x = layer(x, key=key)
                return x
        """,
        id="a key for each layer that a loop goes through",
    ),
    pytest.param(
        """
        def dropout(x, rate, rng):
            return jnp.where(jax.random.bernoulli(rng, 1 - rate, x.shape), x / (1 - rate), 0)

        def initial(shape, rng):
            return jax.random.normal(rng, shape)

        def network(x, depth, rng):
            for _ in range(depth):
                rng, own = jax.random.split(rng)
                x = dropout(x @ initial((8, 8), own), 0.1, own)
            return x
        """,
        id="a function of the file, a key for every turn",
    ),
    pytest.param(
        """
        def forward(model, x, train, inference):
            x = model(x, deterministic=not train)
            x = model(x, train=not inference)
            return model(x, deterministic=inference, train=train)
        """,
        id="the right way round",
    ),
    pytest.param(
        """
        def block(x, key):
            first, second = jax.random.split(key)
            x = hk.dropout(first, 0.1, x)
            return hk.dropout(second, 0.1, x)
        """,
        id="split",
    ),
    pytest.param(
        """
        def block(x, key):
            x = hk.dropout(key, 0.1, x)
            key, _ = jax.random.split(key)
            return hk.dropout(key, 0.1, x)
        """,
        id="set anew",
    ),
    pytest.param(
        """
        def block(x):
            x = hk.dropout(hk.next_rng_key(), 0.1, x)
            return hk.dropout(hk.next_rng_key(), 0.1, x)
        """,
        id="haiku's own keys",
    ),
    pytest.param(
        """
        def block(x, keys):
            x = hk.dropout(keys[0], 0.1, x)
            return hk.dropout(keys[1], 0.1, x)
        """,
        id="items",
    ),
    pytest.param(
        """
        def block(x, key, wide):
            if wide:
                return hk.dropout(key, 0.1, jnp.tanh(x))
            return hk.dropout(key, 0.1, x)
        """,
        id="an early return",
    ),
    pytest.param(
        """
        def block(x, key, wide):
            if wide:
                x = hk.dropout(key, 0.1, jnp.tanh(x))
                return x + 1
            return hk.dropout(key, 0.1, x)
        """,
        id="a branch that returns",
    ),
    pytest.param(
        """
        def block(x, key, wide):
            if wide:
                x = hk.dropout(key, 0.1, jnp.tanh(x))
            else:
                x = hk.dropout(key, 0.1, x)
            return hk.relu(x) if wide else x
        """,
        id="two arms",
    ),
    pytest.param(
        """
        def block(x, key, wide):
            return hk.dropout(key, 0.1, x) if wide else hk.dropout(key, 0.2, x)
        """,
        id="two arms of an expression",
    ),
    pytest.param(
        """
        def block(x, key, kind):
            match kind:
                case "wide":
                    x = hk.dropout(key, 0.1, x)
                case "deep":
                    x = hk.dropout(key, 0.2, x)
            return x
        """,
        id="two cases",
    ),
    pytest.param(
        """
        def forward(x, key):
            for weight in weights:
                key, first = jax.random.split(key)
                x = hk.dropout(first, 0.1, x @ weight)
            for weight, one in zip(weights, jax.random.split(key)):
                x = hk.dropout(one, 0.1, x @ weight)
            return x
        """,
        id="a key for every turn of a loop",
    ),
    pytest.param(
        """
        def forward(x, key):
            for index, weight in enumerate(weights):
                x = hk.dropout(jax.random.fold_in(key, index), 0.1, x @ weight)
            return x
        """,
        id="folded in",
    ),
    pytest.param(
        """
        def first(x, key):
            return hk.dropout(key, 0.1, x)

        def second(x, key):
            return hk.dropout(key, 0.1, x)
        """,
        id="two functions",
    ),
    pytest.param(
        """
        def block(self, x, key):
            x = self.attention(x, key=key)
            return self.dropout(x, key=key)
        """,
        id="one dropout and something else",
    ),
    pytest.param(
        """
        class Net(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x, train: bool):
                x = flax.linen.Dropout(0.5)(x, deterministic=not train)
                x = flax.linen.Dropout(0.5, deterministic=True)(x)
                return flax.linen.SelfAttention(8, deterministic=False)(x)
        """,
        id="Flax, told",
    ),
    pytest.param(
        """
        class Net(nnx.Module):
            def __init__(self, rngs):
                self.first = nnx.Dropout(0.5, rngs=rngs, deterministic=False)
                self.second = eqx.nn.Dropout(0.5, inference=False)
        """,
        id="layers that start in training, which their modules switch",
    ),
    pytest.param(
        """
        class Net(flax.linen.Module):
            def training_step(self, x):
                return flax.linen.Dropout(0.5)(x, deterministic=False)
        """,
        id="a training step",
    ),
    pytest.param(
        """
        class Net(flax.linen.Module):
            def __call__(self, x, train):
                if train:
                    x = flax.linen.Dropout(0.5)(x, deterministic=False)
                return x
        """,
        id="under a switch",
    ),
    pytest.param(
        """
        class MCDropoutNet(flax.linen.Module):
            \"\"\"Monte-Carlo dropout.\"\"\"

            def __call__(self, x):
                return flax.linen.Dropout(0.5)(x, deterministic=False)
        """,
        id="by design",
    ),
    pytest.param(
        """
        def train_step(state, batch, key):
            return state.apply_fn(state.params, batch, train=True, rngs={"dropout": key})

        def eval_step(state, batch):
            return state.apply_fn(state.params, batch, train=False)
        """,
        id="steps",
    ),
    pytest.param(
        """
        def evaluate(policy, state):
            return policy.sample(state, deterministic=False)
        """,
        id="a policy that samples",
    ),
    pytest.param(
        """
        class Net(flax.linen.Module):
            def __call__(self, x, train):
                return flax.linen.BatchNorm(use_running_average=not train)(x)

        class Other(flax.linen.Module):
            def __call__(self, x, train):
                return flax.linen.Dropout(0.5)(x, deterministic=not train)

        def main(x, variables):
            return Net().apply(variables, x, train=True, mutable=["batch_stats"])
        """,
        id="a module without dropout",
    ),
    pytest.param(
        """
        class Net(flax.linen.Module):
            def __call__(self, x, train):
                return flax.linen.Dropout(0.5, deterministic=not train)(x)

        def main(x, params, key, options):
            model = Net()
            model.apply(params, x, train=True, rngs={"dropout": key})
            model.apply(params, x, train=True, **options)
            model.apply(params, x, train=False)
            return other.apply(params, x, train=True)
        """,
        id="keys that are given, or can't be seen",
    ),
    pytest.param(
        """
        class Net(flax.linen.Module):
            def __call__(self, x, train):
                x = flax.linen.Dropout(0.0, deterministic=not train)(x)
                return flax.linen.Dropout(0.5, rng_collection="noise")(x, deterministic=not train)

        def main(x, params):
            return Net().apply(params, x, train=True)
        """,
        id="a rate of 0, or a stream of another name",
    ),
    pytest.param(
        """
        options = tf.data.Options()
        options.deterministic = False
        dataset = dataset.map(load, deterministic=False)
        """,
        id="data",
    ),
]

CASES = [*WRONG, *RIGHT]


@pytest.mark.parametrize("text", CASES)
def test_hits(text):
    assert hits(text, CODE) == marked(text)


def test_says_what_is_wrong():
    assert messages(KEYS[4].values[0], CODE) == [
        "`key` is the key of two dropouts, which then drop alike"
    ]
    assert messages(MODES[3].values[0], CODE) == ["`deterministic=False` drops in evaluation, too"]
    assert messages(NO_KEY[0].values[0], CODE) == [
        'dropout needs a key here: `rngs={"dropout": key}`'
    ]


def test_silent_in_tests_and_without_jax(tmp_path):
    text = "\ndef block(x, key):\n    return dropout(dropout(x, key=key), key=key){mark}\n"
    files = {
        "net.py": "import jax" + text.format(mark="  # wrong"),
        "tests/test_net.py": "import jax" + text.format(mark=""),
        "other.py": "import torch" + text.format(mark=""),
    }
    assert scanned(tmp_path, files, CODE) == marked_in(files)


MUTANTS = [
    ("if turned is not None:", "if False:"),
    ('given.arg in _OFF and mode == "train"', "False"),
    ('given.arg in _ON and mode == "eval"', "False"),
    ("ast.Name | ast.Attribute | ast.UnaryOp)", "ast.Attribute)"),
    (" or _handed_on(call, file)\n        if", "\n        if"),
    (" or _handed_on(at, file, depth - 1)", ""),
    ("return given or _key_of_own(call, file)", "return given"),
    ('if file.called(call) == "jax.random.bernoulli":', "if False:"),
    ('return argument(call, 0, "key") if dropped else None', 'return argument(call, 0, "key")'),
    ("dotted(_gone_through(call.func, file))", "dotted(call.func)"),
    (' - (dotted(through.func) == "enumerate")', ""),
    ("if any(start <= _position(binding) <= end for binding in bound):", "if False:"),
    ("_arm(parent, child) == _arm(parent, after[after.index(parent) - 1])", "True"),
    ("isinstance(arm, list) and leaves(arm)", "False"),
    ("| ast.IfExp | ast.Match", "| ast.Match"),
    ("| ast.IfExp | ast.Match", "| ast.IfExp"),
    ("not inside and not leaves(parent.body)", "True"),
    ("or _repeated(", "or not _repeated("),
    ("(file.scope_of(call), key.id)", "(file.tree, key.id)"),
    ('"dropout" not in name and', ""),
    ("given.arg in _OFF and given.value.value is False", "given.arg in _OFF"),
    ("given.arg in _ON and given.value.value is True", "False"),
    ("rate is not None and number(rate) != 0", "True"),
    ("and not by_design(call, file)", ""),
    ("if not trains_only(call, file) and", "if"),
    ("if name in _APPLIED:", "if False:"),
    ("name in _MODELS and", ""),
    ('given.arg == "rngs"', "False"),
    ("or opaque(call)", ""),
    ('number(argument(call, 0, "rate")) != 0', "True"),
    ('given.arg == "rng_collection"', "False"),
    ("file.class_of(call) is owner", "True"),
]


def test_mutants():
    assert mutants(jax_key_or_mode, MUTANTS, CASES) == []
