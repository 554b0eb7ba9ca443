"""An abstract interpreter: runs functions without values and records the steps they would take.

All branches are taken, and loops twice; of `if ... elif ...` without `else` one is. A condition on
the class of a layer, or on there being a value, is taken as it is where that can be told.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from typing import Any

from dropseed.audit.reading.apply import CALLS, FORWARD, Caller, parameters
from dropseed.audit.reading.chain import EMPTY, Chain, Layer, single, then
from dropseed.audit.reading.evaluate import DEPTH, EnoughError, Env
from dropseed.audit.reading.file import Class, File, Function, default_of
from dropseed.audit.reading.steps import NOTHING, PASSING, Step, Value, union

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DROPS = frozenset({"elementwise", "spatial", "path", "alpha"})
_PARTNERS = re.compile(r"batch_?norm|conv\w*[23]d|max_?pool|dropout[123]d", re.IGNORECASE)


class Interpreter(Caller):
    """Runs the functions and classes of one file.

    Args:
        file: the file.
    """

    def __init__(self, file: File) -> None:
        super().__init__(file)
        self._sites: list[ast.expr] = []
        self._calls: list[ast.Call] = []
        self._busy: set[ast.AST] = set()
        self._partners = any(map(_is_partner, file.calls))

    # ---- what is run -----------------------------------------------------------------------

    def follow(self, sites: Iterable[ast.expr]) -> list[Step]:
        """Run every class and function in which some expressions stand.

        Those that call them are run, too, if dropout is the first or last that these do.

        Args:
            sites: the expressions.

        Returns:
            The steps.
        """
        self._sites = [*sites]
        roots = dict.fromkeys(self._outermost(site) for site in self._sites)
        done: set[ast.AST] = set()
        self._busy = {*roots}
        try:
            for _ in range(CALLS + 1):
                for root in roots:
                    self._run_root(root)
                done.update(roots)
                names = {getattr(at, "name", "") for at in roots if self._is_open(at)}
                self._calls = [at for at in self.file.calls if self.dotted(at.func) in names]
                found = dict.fromkeys(map(self._outermost, self._calls))
                roots = {at: None for at in found if at not in done}
                self._busy |= {*roots}
            self._run_sequences()
        except EnoughError:
            pass
        return list(self.steps.values())

    def worthwhile(self, node: ast.AST) -> bool:
        """Whether a function or class may have to do with dropout or what matters beside it."""
        return self._partners or self._outermost(node) in self._busy or node in self._busy

    def _run_root(self, root: ast.AST) -> None:
        if isinstance(root, ast.ClassDef):
            self._run_class(next(at for at in self.file.classes if at.node is root))
        elif isinstance(root, _FUNCTIONS):
            self.summary(root, None)
        else:
            self.block(self.file.tree.body, {})
        self._run_inner()

    def _is_open(self, root: ast.AST) -> bool:
        """Whether a class or function begins or ends with dropout, or builds layers."""
        if isinstance(root, _FUNCTIONS):
            summary = self.summary(root, None)
        elif isinstance(root, ast.ClassDef):
            owner = next(at for at in self.file.classes if at.node is root)
            forward = self.forward_of(owner)
            if forward is None:
                return True
            summary = self.summary(forward, owner)
        else:
            return False
        if summary is None or summary.returned.chain:
            return True
        first = [at for step in summary.parameters.values() for at in step.after(*PASSING)]
        last = [at for step in summary.returned.everything for at in (step, *step.before(*PASSING))]
        return any(at.family in _DROPS for at in first + last)

    def _outermost(self, node: ast.AST) -> ast.AST:
        found: ast.AST = self.file.tree
        for at in self.file.ancestors(node):
            if isinstance(at, ast.ClassDef):
                return at
            if isinstance(at, _FUNCTIONS):
                found = at
        return found

    def _run_class(self, owner: Class) -> None:
        for name, method in owner.methods.items():
            if name in FORWARD or self._has_dropout(method):
                self.summary(method, owner)
        own = (site for site in self._sites if self._outermost(site) is owner.node)
        if any(site not in self.built for site in own):
            self.attributes(owner)

    @property
    def _of_interest(self) -> list[ast.expr]:
        return [*self.file.reads, *self._sites, *self._calls]

    def _has_dropout(self, function: Function) -> bool:
        """Whether a method, no constructor, builds or applies dropout, or calls what does."""
        if function.name == "__init__":
            return False
        first, last = function.lineno, function.end_lineno or function.lineno
        return any(first <= at.lineno <= last for at in self._of_interest)

    def _run_inner(self) -> None:
        """The functions inside of functions that nobody has called."""
        while self.inner:
            function, (env, owner) = self.inner.popitem()
            given = {at.arg: self.unknown(at) for at in parameters(function) if at.arg != "self"}
            self.returned[function] = self.run(function, owner, {**env, **given})

    def _run_sequences(self) -> None:
        """The sequences by themselves, since those who apply them may be out of sight."""
        self.context = ("alone",)
        for node, chain in list(self.sequences.items()):
            self.apply(chain, [self.unknown(node)], node)

    # ---- statements ------------------------------------------------------------------------

    def block(self, body: list[ast.stmt], env: Env | None) -> Env | None:
        """Run statements. None stands for a place that is never reached."""
        self.depth += 1
        for statement in body if self.depth < DEPTH else ():
            if env is None:
                break
            run = _STATEMENTS.get(type(statement))
            if run is not None:
                env = run(self, statement, env)
        self.depth -= 1
        return env

    def _assign(self, node: ast.Assign, env: Env) -> Env:
        value = self.value(node.value, env)
        for target in node.targets:
            self.bind(target, value, env)
            if isinstance(node.value, ast.Dict) and (name := self.dotted(target)):
                self.bind_items(name, node.value, env)
        return env

    def _annotated(self, node: ast.AnnAssign, env: Env) -> Env:
        if node.value is not None:
            self.bind(node.target, self.value(node.value, env), env)
        return env

    def _augmented(self, node: ast.AugAssign, env: Env) -> Env:
        old, new = self.value(node.target, env), self.value(node.value, env)
        self.bind(node.target, self.operated(node, node.op, old, new), env)
        return env

    def _expression(self, node: ast.Expr, env: Env) -> Env:
        self.value(node.value, env)
        return env

    def _return(self, node: ast.Return, env: Env) -> None:
        if node.value is not None:
            self.returns[-1].append(self.value(node.value, env))

    def _leave(self, node: ast.stmt, env: Env) -> None:
        """`raise`, `break`, `continue`; what comes behind a loop is reached without them, too."""

    def _if(self, node: ast.If, env: Env, chained: bool = False) -> Env | None:
        """Both branches; but of `if ... elif ...` without `else` one is taken."""
        self.value(node.test, env)
        truth = self._truth(node.test, env)
        first = None if truth is False else self.block(node.body, dict(env))
        if truth is True or (chained and not node.orelse):
            return first
        if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
            return _either(first, self._if(node.orelse[0], dict(env), chained=True))
        return _either(first, self.block(node.orelse, dict(env)))

    def _truth(self, test: ast.expr, env: Env) -> bool | None:
        """Whether a condition on a layer's class, or on a value's being there, holds, if known."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            truth = self._truth(test.operand, env)
            return None if truth is None else not truth
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
            return False if any(self._truth(at, env) is False for at in test.values) else None
        if isinstance(test, ast.Compare):
            return self._missing(test, env)
        if isinstance(test, ast.Call) and self.dotted(test.func) == "isinstance":
            return self._is_a(test.args[0], test.args[1], env) if len(test.args) == 2 else None
        return None

    def _is_a(self, node: ast.expr, classes: ast.expr, env: Env) -> bool | None:
        chain = (self.known(self.dotted(node), env) or NOTHING).chain
        part = chain.alone if chain else None
        named = classes.elts if isinstance(classes, ast.Tuple) else [classes]
        names = {self.file.name_of(at) for at in named}
        if not isinstance(part, Layer) or not part.kind or "" in names:
            return None
        return bool(names & set(self.file.project.ancestors(part.kind)))

    def _missing(self, test: ast.Compare, env: Env) -> bool | None:
        """`x is None` is false of what a step or a layer may be."""
        sign, other = test.ops[0], test.comparators[0]
        if not isinstance(sign, ast.Is | ast.IsNot) or not isinstance(other, ast.Constant):
            return None
        value = self.known(self.dotted(test.left), env) or NOTHING
        known = bool(value.steps) or (value.chain is not None and not value.chain.skippable)
        if any(self._is_optional(step) for step in value.steps):
            return None
        return isinstance(sign, ast.IsNot) if known and other.value is None else None

    def _is_optional(self, step: Step) -> bool:
        """Whether a step stands for an argument that need not be given."""
        if not isinstance(step.node, ast.arg):
            return False
        function = self.file.function_of(step.node)
        return function is not None and default_of(step.node, function) is not None

    def _while(self, node: ast.While, env: Env) -> Env | None:
        return self._repeat(node.body, env)

    def _repeat(self, body: list[ast.stmt], env: Env) -> Env | None:
        """Run a loop's body twice; loops that are never entered are not thought of."""
        once = self.block(body, dict(env))
        again = self.block(body, dict(once)) if once is not None else None
        return _either(once, again) or env

    def _for(self, node: ast.For | ast.AsyncFor, env: Env) -> Env | None:
        chain, target = self._iterated(node, env)
        if chain is None:
            self.bind_each(node.target, node.iter, env)
            done = self._repeat(node.body, env)
            return self._in_some_order(node, env, done) if done and _picks(node) else done
        return self._each(node, chain, target, env)

    def _in_some_order(self, node: ast.For | ast.AsyncFor, env: Env, done: Env) -> Env:
        """Forget the order of the layers that a loop picks: `for name in "conv-norm": if ...`."""
        for name, value in done.items():
            old = env.get(name, NOTHING).chain
            if value.chain is not None and value.chain is not old:
                chain = then(old or EMPTY, self.stranger(node))
                done[name] = Value(value.steps, chain)
                self.sequences = {
                    at: chain if held is value.chain else held
                    for at, held in self.sequences.items()
                }
        return done

    def _iterated(self, node: ast.For | ast.AsyncFor, env: Env) -> tuple[Chain | None, str]:
        """The layers that a loop goes through in order, and the name that each has in turn."""
        found: ast.expr = node.iter
        target: ast.expr = node.target
        if isinstance(found, ast.Call) and self.dotted(found.func) == "enumerate" and found.args:
            found = found.args[0]
            if isinstance(target, ast.Tuple) and len(target.elts) == 2:
                target = target.elts[1]
        if isinstance(found, ast.Call) and isinstance(found.func, ast.Attribute):
            named = found.func.attr in ("items", "named_children")
            if named and isinstance(target, ast.Tuple) and len(target.elts) == 2:
                target = target.elts[1]
            if named or found.func.attr in ("values", "children"):
                found = found.func.value
        if not isinstance(target, ast.Name) or not self.dotted(found):
            return None, ""
        chain = self.value(found, env).chain
        return (chain if chain is not None and chain.parts else None), target.id

    def _each(self, node: ast.For | ast.AsyncFor, chain: Chain, target: str, env: Env) -> Env:
        """Run a loop's body for each layer, in every order that they have."""
        ends: dict[object, Env] = {}
        context = self.context
        for _ in range(1 if chain.straight else 2):
            for part in chain.parts:
                start: Env | None = dict(env) if part in chain.first else None
                for one in chain.before(part):
                    start = _either(start, ends.get(one))
                if start is not None:
                    self.context = (*context, part)
                    start = dict(start)
                    start[target] = Value(chain=single(part))
                    ends[part] = self.block(node.body, dict(start)) or start
        self.context = context
        result: Env | None = env if chain.skippable else None
        for part in chain.last:
            result = _either(result, ends.get(part))
        return result or env

    def _with(self, node: ast.With | ast.AsyncWith, env: Env) -> Env | None:
        for item in node.items:
            value = self.value(item.context_expr, env)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, value, env)
        return self.block(node.body, env)

    def _try(self, node: ast.Try, env: Env) -> Env | None:
        done = self.block(node.orelse, self.block(node.body, dict(env)))
        for handler in node.handlers:
            done = _either(done, self.block(handler.body, dict(env)))
        return self.block(node.finalbody, done)

    def _match(self, node: ast.Match, env: Env) -> Env | None:
        done: Env | None = dict(env)
        for case in node.cases:
            done = _either(done, self.block(case.body, dict(env)))
        return done

    def _define(self, node: Function, env: Env) -> Env:
        if self.active:
            self.inner[node] = (env, self.owners[-1])
        return env


_STATEMENTS: dict[type, Callable[[Any, Any, Env], Env | None]] = {
    ast.Assign: Interpreter._assign,
    ast.AnnAssign: Interpreter._annotated,
    ast.AugAssign: Interpreter._augmented,
    ast.Expr: Interpreter._expression,
    ast.Return: Interpreter._return,
    ast.Raise: Interpreter._leave,
    ast.Break: Interpreter._leave,
    ast.Continue: Interpreter._leave,
    ast.If: Interpreter._if,
    ast.While: Interpreter._while,
    ast.For: Interpreter._for,
    ast.AsyncFor: Interpreter._for,
    ast.With: Interpreter._with,
    ast.AsyncWith: Interpreter._with,
    ast.Try: Interpreter._try,
    ast.Match: Interpreter._match,
    ast.FunctionDef: Interpreter._define,
    ast.AsyncFunctionDef: Interpreter._define,
}


def _picks(loop: ast.For | ast.AsyncFor) -> bool:
    """Whether a loop compares its variable with a text, to choose what comes next."""
    tests = (at.test for at in ast.walk(loop) if isinstance(at, ast.If))
    return isinstance(loop.target, ast.Name) and any(
        isinstance(test, ast.Compare)
        and isinstance(test.left, ast.Name)
        and test.left.id == loop.target.id
        and any(isinstance(getattr(at, "value", 0), str) for at in test.comparators)
        for test in tests
    )


def _is_partner(call: ast.Call) -> bool:
    """Whether a call names a layer beside which dropout may be wrong."""
    func = call.func
    name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
    return _PARTNERS.search(name) is not None


def _either(one: Env | None, other: Env | None) -> Env | None:
    """What names may be behind two branches."""
    if one is None or other is None or one is other:
        return other if one is None else one
    joined = dict(one)
    for name, value in other.items():
        mine = joined.get(name)
        joined[name] = value if mine is None else union(mine, value)
    return joined
