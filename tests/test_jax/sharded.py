"""Dropout on eight devices, in a process of its own: prints what went wrong, or nothing."""

import os
import re

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dropseed.jax as dsj
from dropseed import Key, keep

KEY = Key(7, 8, 9)
WORDS = dsj.key(KEY)
TALK = re.compile(r"all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter")
AUTO = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
EXPLICIT = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)

SHARDED = [  # along which axes an array lies, and whether a shard's part may be drawn alone
    ((16, 64), P("a", "b"), True),
    ((8, 7, 5), P("a"), True),
    ((64, 100), P("a", "b"), True),
    ((1000,), P("a"), True),
    ((16, 48), P(None, ("a", "b")), False),
]


def report(what, fine):
    if not fine:
        print("WRONG:", what)


def largest(text):
    """The number of elements of a program's largest array."""
    shapes = re.findall(r"\w+\[([\d,]+)\]", text)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


def by_jit():
    """Arrays that jit partitions: the bits, no communication, and no whole mask anywhere."""
    for shape, spec, alone in SHARDED:
        ones = jnp.ones(shape)
        x = jax.device_put(ones, NamedSharding(AUTO, spec))
        want = keep(KEY, 0.3, shape)

        def there(words, x):
            return dsj.dropout(words, x, 0.3)

        def back(words, x):
            return jax.vjp(lambda x: dsj.dropout(words, x, 0.3), x)[1](x)[0]

        for function in (there, back) if spec == P("a", "b") else (there,):
            program = jax.jit(function).lower(WORDS, x).compile()
            output, text = program(WORDS, x), program.as_text()
            report(f"{shape} {spec}: mask", np.array_equal(np.asarray(output) != 0, want))
            report(f"{shape} {spec}: {TALK.findall(text)}", not TALK.search(text))
            report(
                f"{shape} {spec}: where it lies",
                output.sharding.is_equivalent_to(x.sharding, x.ndim),
            )
            if alone:
                report(f"{shape} {spec}: {largest(text)}", largest(text) < x.size / 1.9)


def other_laws():
    """The variants, each on a batch that is split."""
    x = jax.device_put(jnp.ones((8, 10, 10, 16)), NamedSharding(AUTO, P("a")))
    for name, options in (
        ("spatial", {}),
        ("drop_path", {}),
        ("alpha", {}),
        ("gaussian", {}),
        ("drop_block", {"block_size": 3}),
    ):
        function = jax.jit(lambda words, x, n=name, o=options: getattr(dsj, n)(words, x, 0.3, **o))
        whole = function(WORDS, np.asarray(x))
        report(f"{name}: values", np.allclose(function(WORDS, x), whole, rtol=1e-5, atol=1e-5))
        text = function.lower(WORDS, x).compile().as_text()
        report(f"{name}: {TALK.findall(text)}", not TALK.search(text))


def by_shard_map():
    """Shards that are told their place, whatever the route."""
    x = jnp.ones((16, 64))
    want = keep(KEY, 0.3, (16, 64))

    def rows(words, x):
        start = jax.lax.axis_index("a") * x.shape[0]
        return dsj.dropout(words, x, 0.3, start=start, of=(16, 64))

    def tiles(words, x):
        start = jax.lax.axis_index("a") * x.shape[0], jax.lax.axis_index("b") * x.shape[1]
        return dsj.dropout(words, x, 0.3, start=start, of=(16, 64))

    for check in (True, False):
        for part, spec, names in (
            (rows, P("a"), {"a", "b"}),
            (tiles, P("a", "b"), {"a", "b"}),
            (rows, P("a"), {"a"}),
        ):
            if not check and part is not tiles:
                continue
            mapped = jax.jit(
                jax.shard_map(
                    part,
                    mesh=AUTO,
                    in_specs=(P(), spec),
                    out_specs=spec,
                    axis_names=names,
                    check_vma=check,
                )
            )
            name = f"shard_map of {part.__name__}, {names}, {check}"
            report(name, np.array_equal(np.asarray(mapped(WORDS, x)) != 0, want))
            slope = jax.grad(lambda x, mapped=mapped: (mapped(WORDS, x) ** 2).sum())(x)
            report(f"{name}, gradient", np.array_equal(np.asarray(slope) != 0, want))


def blocks_by_shard_map():
    """DropBlock of a part of the batch, and of a batch that is counted together."""
    x = jnp.ones((8, 9, 9, 2))
    for normalization in ("sample", "batch", "expectation"):
        options = {"normalization": normalization}
        whole = dsj.drop_block(WORDS, x, 0.3, 3, **options)
        if normalization == "batch":
            options["axis_name"] = ("a", "b")

        def part(words, x, options=options):
            place = jax.lax.axis_index(("a", "b"))
            return dsj.drop_block(words, x, 0.3, 3, start=place * x.shape[0], **options)

        spec = P(("a", "b"))
        mapped = jax.shard_map(part, mesh=AUTO, in_specs=(P(), spec), out_specs=spec)
        report(f"blocks, {normalization}", np.allclose(jax.jit(mapped)(WORDS, x), whole))


def by_explicit_axes():
    """Shardings that are part of the types."""
    with jax.set_mesh(EXPLICIT):
        x = jax.device_put(jnp.ones((16, 64)), NamedSharding(EXPLICIT, P("a", "b")))
        function = jax.jit(lambda x: dsj.dropout(WORDS, x, 0.3))
        want = keep(KEY, 0.3, (16, 64))
        report("explicit axes", np.array_equal(np.asarray(function(x)) != 0, want))
        slope = jax.grad(lambda x: function(x).sum())(x)
        report("explicit axes, gradient", np.array_equal(np.asarray(slope) != 0, want))


by_jit()
other_laws()
by_shard_map()
blocks_by_shard_map()
by_explicit_axes()
print("done", jax.device_count())
