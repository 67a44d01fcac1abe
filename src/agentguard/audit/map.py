"""The map: a 16-ary hash trie whose root stands for everything that decides later calls.

A key is one byte for its kind, then 31 bytes of a hash. The address of a node is its path from the
root, in hex. A bucket has at most 16 keys; a node with more keys below has a child for each hex
digit. So the root depends on the contents alone, and an absence is as provable as a value.

There is no database here: ``fetch`` gets unverified nodes, and each is compared with the hash that
its parent has, up to the root, which the signed head covers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Final

from agentguard.errors import StorageError

BUCKET: Final = 16
"""The most keys of a node without children."""

KEY_SIZE: Final = 32
MAX_VALUE: Final = 0xFFFF
"""The longest value, in bytes."""

_BUCKET: Final = b"\x02"
_INNER: Final = b"\x03"  # RFC 6962 has 0 and 1 for its leaves and nodes
_COUNT: Final = 8
_DIGITS: Final = "0123456789abcdef"
_LOOK: Final = 8
"""The nodes along a path that are asked for at once: at a million keys a path has five."""

_MOST_CACHED: Final = 8192
_AT_ONCE: Final = 512

EMPTY_ROOT: Final = sha256(_BUCKET).digest()
"""The root of the map without keys."""

Fetch = Callable[[list[str]], Mapping[str, bytes]]
"""Returns the nodes at addresses, unverified; an address without a node is left out."""


def key(kind: int, name: str) -> bytes:
    """Return the key of a name of a kind (0 to 255)."""
    return bytes((kind,)) + sha256(name.encode()).digest()[: KEY_SIZE - 1]


class Bucket(dict[bytes, bytes]):
    """A node without children: values by key."""

    @property
    def count(self) -> int:
        """The number of keys."""
        return len(self)


class Inner:
    """A node with children, one for each hex digit; ``count`` is the number of keys below."""

    __slots__ = ("children", "count")

    def __init__(self, count: int, children: list[Child]) -> None:
        self.count = count
        self.children = children


Node = Bucket | Inner
Child = bytes | Node | None
"""A child by its hash, or as it was changed; None for no child."""


def encode(node: Node) -> bytes:
    """Return the bytes of a node whose children are hashes; their SHA-256 is its hash."""
    if isinstance(node, Bucket):
        rows = [k + len(v).to_bytes(2) + v for k, v in sorted(node.items())]
        return _BUCKET + b"".join(rows)
    hashes = [child for child in node.children if isinstance(child, bytes)]
    mask = sum(1 << i for i, child in enumerate(node.children) if child is not None)
    return _INNER + node.count.to_bytes(_COUNT) + mask.to_bytes(2) + b"".join(hashes)


def decode(data: bytes) -> Node:
    """Read what ``encode`` has written. Compare its hash first: the form is not checked."""
    if data[:1] == _BUCKET:
        bucket, at = Bucket(), 1
        while at < len(data):
            end = at + KEY_SIZE + 2
            size = int.from_bytes(data[at + KEY_SIZE : end])
            bucket[data[at : at + KEY_SIZE]] = data[end : end + size]
            at = end + size
        return bucket
    at = 1 + _COUNT + 2
    mask = int.from_bytes(data[1 + _COUNT : at])
    inner = Inner(int.from_bytes(data[1 : 1 + _COUNT]), [None] * BUCKET)
    for digit in range(BUCKET):
        if mask >> digit & 1:
            inner.children[digit] = data[at : at + 32]
            at += 32
    return inner


class Cache:
    """Verified nodes by their hash: none of them can be stale. They are shared, and not changed."""

    def __init__(self) -> None:
        self._nodes: dict[bytes, Node] = {EMPTY_ROOT: Bucket()}

    def get(self, digest: bytes) -> Node | None:
        """Return the node with a hash, None for one that is not here."""
        return self._nodes.get(digest)

    def put(self, digest: bytes, node: Node) -> None:
        """Keep a node; now and then, all others go."""
        if len(self._nodes) >= _MOST_CACHED:
            self._nodes = {EMPTY_ROOT: Bucket()}
        self._nodes[digest] = node


class Map:
    """The map under one root. Changes are kept here until ``seal``.

    Each method raises ``StorageError`` (``storage.corrupt``) for a node that is missing, or another
    one than the root covers.
    """

    def __init__(self, root: bytes, fetch: Fetch, cache: Cache) -> None:
        self._root: bytes | Node = root
        self._fetch = fetch
        self._cache = cache
        self._rows: dict[str, bytes | None] = {}
        self._gone: set[str] = set()

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, None for a key that the map does not have."""
        path, depth = key.hex(), 0
        child: Child = self._root
        while child is not None:
            node = self._node(child, path[:depth], path)
            if isinstance(node, Bucket):
                return node.get(key)
            child, depth = node.children[int(path[depth], 16)], depth + 1
        return None

    @property
    def root(self) -> bytes | None:
        """The root, None while changes are kept here."""
        return self._root if isinstance(self._root, bytes) else None

    def version(self, kind: int) -> object:
        """Return what is equal as long as no key of a kind changes."""
        path = f"{kind:02x}"
        below: Child = self._root
        for depth, digit in enumerate(path):
            if below is None:
                return None
            node = self._node(below, path[:depth], path)
            if isinstance(node, Bucket):
                return {one: value for one, value in node.items() if one[0] == kind}
            below = node.children[int(digit, 16)]
        return below

    def put(self, key: bytes, value: bytes | None) -> None:
        """Give a key a value, or take the key away (None)."""
        require_value(key, value)
        changed, _more = self._put(self._root, key, value, key.hex(), 0)
        self._root = Bucket() if changed is None else changed

    def seal(self) -> tuple[bytes, dict[str, bytes | None]]:
        """Hash what was changed. Return the root, and by address the changed nodes, None for gone.

        The empty map has no node.
        """
        rows: dict[str, bytes | None] = dict.fromkeys(self._gone)
        if not isinstance(self._root, bytes):
            self._root = self._seal(self._root, "", rows) or EMPTY_ROOT
        self._gone = set()
        return self._root, rows

    def items(self, kind: int | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key of a kind (or all keys) with its value: none can be hidden."""
        prefix = "" if kind is None else f"{kind:02x}"
        for _address, node in self.nodes(prefix):
            if isinstance(node, Bucket):
                yield from (pair for pair in node.items() if kind is None or pair[0][0] == kind)

    def nodes(self, prefix: str = "") -> Iterator[tuple[str, Node]]:
        """Yield each node with its address, above or below an address, the upper ones first."""
        level: list[tuple[str, bytes | Node]] = [("", self._root)]
        while level:
            below: list[tuple[str, bytes | Node]] = []
            for start in range(0, len(level), _AT_ONCE):
                part = level[start : start + _AT_ONCE]
                self._ask([at for at, child in part if self._is_wanted(at, child)])
                for address, child in part:
                    node = self._node(child, address, address)
                    self._rows.pop(address, None)
                    yield address, node
                    if isinstance(node, Inner):
                        for digit, one in zip(_DIGITS, node.children, strict=True):
                            at = address + digit
                            if one is not None and (at.startswith(prefix) or prefix.startswith(at)):
                                below.append((at, one))
            level = below

    def _is_wanted(self, address: str, child: bytes | Node) -> bool:
        is_unknown = isinstance(child, bytes) and self._cache.get(child) is None
        return is_unknown and address not in self._rows

    def _ask(self, addresses: list[str]) -> None:
        if addresses:
            self._rows.update({**dict.fromkeys(addresses), **self._fetch(addresses)})

    def _node(self, child: bytes | Node, address: str, path: str) -> Node:
        """Return a child as a node; ``path`` is where the look goes on below its address."""
        if not isinstance(child, bytes):
            return child
        node = self._cache.get(child)
        if node is None:
            if address not in self._rows:
                end = max(len(path), len(address)) + 1
                self._ask([path[:d] for d in range(len(address), min(end, len(address) + _LOOK))])
            data = self._rows[address]
            if data is None or sha256(data).digest() != child:
                raise _damaged(address)
            node = decode(data)
            self._cache.put(child, node)
        return node

    def _put(
        self, child: Child, key: bytes, value: bytes | None, path: str, depth: int
    ) -> tuple[Node | bytes | None, int]:
        """Return the changed child, and how many keys it has more than before."""
        address = path[:depth]
        if child is None:
            return (None, 0) if value is None else (Bucket({key: value}), 1)
        node = self._node(child, address, path)
        if isinstance(node, Bucket):
            if node.get(key) == value:
                return child, 0
            before, bucket = len(node), Bucket(node)
            if value is None:
                del bucket[key]
            else:
                bucket[key] = value
            more = len(bucket) - before
            if not bucket:
                self._gone.add(address)
                return None, more
            return (_split(bucket, depth) if len(bucket) > BUCKET else bucket), more
        digit = int(path[depth], 16)
        changed, more = self._put(node.children[digit], key, value, path, depth + 1)
        if changed is node.children[digit]:
            return child, 0
        children = [*node.children]
        children[digit] = changed
        inner = Inner(node.count + more, children)
        return (inner if inner.count > BUCKET else self._merged(inner, address)), more

    def _merged(self, inner: Inner, address: str) -> Bucket:
        """Return the bucket in the place of a node whose children have few keys left."""
        merged = Bucket()
        for digit, child in zip(_DIGITS, inner.children, strict=True):
            if child is not None:
                below = self._node(child, address + digit, address + digit)
                if not isinstance(below, Bucket):
                    raise _damaged(address)
                self._gone.add(address + digit)
                merged.update(below)
        return merged

    def _seal(self, node: Node, address: str, rows: dict[str, bytes | None]) -> bytes | None:
        if isinstance(node, Inner):
            for digit, child in enumerate(node.children):
                if child is not None and not isinstance(child, bytes):
                    below = self._seal(child, address + _DIGITS[digit], rows)
                    node.children[digit] = below
        elif not node:
            rows[address] = None
            return None
        data = rows[address] = encode(node)
        digest = sha256(data).digest()
        self._cache.put(digest, node)
        return digest


class Overlay:
    """Changes of a map that count only once somebody takes them (``puts``)."""

    def __init__(self, below: Map) -> None:
        self.below: Final = below
        self.puts: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, with these changes; None for no such key."""
        return self.puts[key] if key in self.puts else self.below.get(key)

    def items(self, kind: int) -> Iterable[tuple[bytes, bytes]]:
        """Return every key of a kind with its value, with these changes."""
        found: dict[bytes, bytes | None] = dict(self.below.items(kind))
        found.update({one: value for one, value in self.puts.items() if one[0] == kind})
        return [(one, value) for one, value in found.items() if value is not None]

    def put(self, key: bytes, value: bytes | None, *, ends: int | None = None) -> None:  # noqa: ARG002
        """Give a key a value, or take the key away; raises ``ValueError`` for no key or value."""
        require_value(key, value)
        self.puts[key] = value


def require_value(key: bytes, value: bytes | None) -> None:
    """Raise ``ValueError`` for what is no key or no value of a map."""
    if len(key) != KEY_SIZE or len(value or b"") > MAX_VALUE:
        message = f"a key has {KEY_SIZE} bytes, a value {MAX_VALUE} at the most"
        raise ValueError(message)


def _damaged(address: str) -> StorageError:
    message = (
        f"the node {address or 'at the root'} of the map is not the one that was signed: keep a "
        "copy, and run agentguard audit verify"
    )
    return StorageError(message, code="storage.corrupt")


def _split(bucket: Bucket, depth: int) -> Inner:
    children: list[Child] = [None] * BUCKET
    for key, value in bucket.items():
        digit = key[depth // 2] >> (0 if depth % 2 else 4) & 15
        child = children[digit]
        if child is None:
            children[digit] = Bucket({key: value})
        elif isinstance(child, Bucket):
            child[key] = value
    parts = [
        _split(one, depth + 1) if isinstance(one, Bucket) and len(one) > BUCKET else one
        for one in children
    ]
    return Inner(len(bucket), parts)
