"""What a guarded tool keeps beside the tool's own fields: its gate, its name, its shape.

The functions that agentguard puts in a tool's place are known here by their seals. How they are
made stands in ``gated_functions.py``, how a call passes them in ``guarded_call.py``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NoReturn, Self
from weakref import ReferenceType, WeakKeyDictionary

from langchain_core.tools import BaseTool

from agentguard import Agent, ConfigError, Decision, adapters
from agentguard_langchain.binding import Entrance, Shape
from agentguard_langchain.codec import ToolResults
from agentguard_langchain.delegation import DelegationSource

OnDeny = Literal["return", "raise"]

SLOTS: Final = ("func", "coroutine")
"""The fields in which LangChain's own tools keep what they run."""

METHODS: Final = ("_run", "_arun")
"""The methods in which a tool class does its work."""

if TYPE_CHECKING:
    _Tool = BaseTool
else:
    _Tool = object  # a model among the bases would put its fields before those of the tool's class


class Gate:
    """What the calls of a guarded tool are checked for.

    ``agent`` makes the calls, under the delegation that ``delegation_source`` returns, or else
    under the one in force. ``on_deny`` says what a refused tool call gives back.
    """

    __slots__ = ("__weakref__", "agent", "delegation_source", "on_deny")

    def __init__(
        self, agent: Agent, on_deny: OnDeny, delegation_source: DelegationSource | None = None
    ) -> None:
        self.agent = agent
        self.on_deny = on_deny
        self.delegation_source = delegation_source

    def __repr__(self) -> str:
        return "<Gate>"

    def __deepcopy__(self, memo: object) -> Self:
        return self  # a copied tool acts for the same agent instance

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise not_pickled()


def not_pickled() -> TypeError:
    """Return the error of pickling what is tied to a key in this process."""
    return TypeError("a guarded tool can't be pickled: pickle the tool, and guard it where it runs")


class Guarded(_Tool):
    """The private attributes that a guarded tool has beside the tool's own."""

    __slots__ = ()

    if TYPE_CHECKING:
        _agentguard_gate: Gate
        _agentguard_name: str
        _agentguard_shape: Shape | None


def gate_of(tool: Guarded) -> Gate:
    """Return the gate that the tool's calls pass; raises ``ConfigError`` where it has none.

    LangChain makes a tool of the guarded class anew for ``configurable_fields``.
    """
    try:
        return tool._agentguard_gate  # noqa: SLF001  private, so that pydantic never shows it
    except AttributeError:
        message = (
            f"tool {tool.name} was made anew from a guarded one, as configurable_fields does, and "
            "has no guard: guard a tool for each configuration instead"
        )
        raise ConfigError(message, code="tool.unguardable") from None


def keep_guarded_name(tool: Any, previous: Any) -> None:
    """Let ``tool`` count as guarded under the name under which ``previous`` was guarded."""
    tool._agentguard_name = previous._agentguard_name  # noqa: SLF001


def name_refusal(tool: Guarded) -> Decision | None:
    """Return the refusal of a tool whose name has changed since it was guarded; None otherwise."""
    guarded_name = tool._agentguard_name  # noqa: SLF001
    if tool.name == guarded_name:
        return None
    reason = (
        f"the tool {guarded_name} was named {tool.name} after it was guarded: guard the tool under "
        "the name that it is to have"
    )
    return Decision.refusal(reason, code="tool.changed")


def shape_of(tool: Guarded) -> Shape:
    """Return what the tool's schema says now, with what the configuration says of the tool."""
    shape = tool._agentguard_shape  # noqa: SLF001
    function, seal = _innermost_function(tool)
    if shape is None or not shape.describes(tool, seal.origin):
        configured = functools.partial(adapters.configure_tool, gate_of(tool).agent)
        shape = Shape.of(tool, function, seal.origin, configured)
        tool._agentguard_shape = shape  # noqa: SLF001
    return shape


def entrance_of(tool: Guarded) -> Entrance:
    """Return how the callable that does the tool's work takes its arguments."""
    return _innermost_function(tool)[1].gated.entrance


class GatedFunction(NamedTuple):
    """What a gate knows of the function behind it.

    ``codec`` reads and writes what the function returns. ``is_method`` for a tool's own ``_run`` or
    ``_arun``: while the method runs, the tool's further layers pass without another decision.
    """

    entrance: Entrance
    codec: ToolResults
    is_method: bool


class FunctionCall(NamedTuple):
    """The original function, with the arguments that it is to run with."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    gated: GatedFunction

    @property
    def values(self) -> Iterable[object]:
        """All arguments."""
        return (*self.args, *self.kwargs.values())

    def run(self) -> Any:
        """Run the original."""
        return self.function(*self.args, **self.kwargs)

    async def arun(self) -> Any:
        """Run the original, and await what it returns."""
        result = self.run()
        return await result if inspect.isawaitable(result) else result


@dataclass(frozen=True, slots=True)
class Seal:
    """What is known of a gated function.

    ``owner`` and ``agent`` are those of a function in a slot; ``rehome`` gates its original for the
    slot of another tool.
    """

    gated: GatedFunction
    origin: str
    owner: ReferenceType[Guarded] | None = None
    agent: Agent | None = None
    rehome: Callable[[Guarded, str], Callable[..., Any]] | None = None


_SEALS: Final[WeakKeyDictionary[Callable[..., Any], Seal]] = WeakKeyDictionary()


def put_seal(function: Callable[..., Any], seal: Seal) -> None:
    """Mark ``function`` as one that agentguard has gated."""
    _SEALS[function] = seal


def seal_of(function: object) -> Seal | None:
    """Return the seal of a gated function; None for any other object."""
    return _SEALS.get(function) if inspect.isfunction(function) else None


def _innermost_function(tool: Guarded) -> tuple[Callable[..., Any], Seal]:
    for name in METHODS:
        seal = seal_of(getattr(type(tool), name))
        if seal is not None:
            return getattr(tool, name), seal
    for slot in SLOTS:
        function = tool.__dict__.get(slot)
        seal = seal_of(function)
        if function is not None and seal is not None:
            return function, seal
    raise ConfigError(f"tool {tool.name} has neither a func nor a coroutine: it can't be guarded")
