"""Who may ask, and what nobody may ask.

The engine trusts whoever calls it: SQL can read files, call URLs and other databases, run programs and reach this
process's own Python objects. Three layers stand before that:

1. The engine's own grants (`engine.users_configuration`): no source (FILE, URL, S3, MYSQL ...), no user management, no
   SHUTDOWN; and constraints on settings that change the parser or read files.
2. The engine's own classification of a statement: what it parses to decides who may run it.
3. Its syntax tree, for what grants do not cover in an embedded engine: functions such as `file()` and `python()`, table
   engines and dictionary sources that start programs, column defaults hidden in a structure string. Asking for the
   tree costs most of a millisecond, so it is asked for only if a word that could matter stands in the text; quoted
   names with escapes, which could hide such a word, always count.
"""

from __future__ import annotations

import hmac
import itertools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from warehouse.embedded import statements
from warehouse.embedded.errors import (
    ACCESS_DENIED,
    AUTHENTICATION_FAILED,
    NOT_IMPLEMENTED,
    READONLY,
    SETTING_CONSTRAINT_VIOLATION,
    SYNTAX_ERROR,
    ServerError,
)

OWNER = "default"
MASKED_DATABASES = frozenset({"bi", "default"})
"""What readers may read who must not see personal data: Mailhouse keeps nothing in `default`."""


class User:
    """Someone with a name and a password; readers only read. `repr` hides the password.

    Attributes:
        is_masked: reads the databases that show nobody's data (`MASKED_DATABASES`), and no others.
    """

    __slots__ = ("_password", "is_masked", "is_reader", "name")

    def __init__(self, name: str, password: str, *, is_reader: bool, is_masked: bool = False) -> None:
        self.name, self._password, self.is_reader, self.is_masked = name, password, is_reader, is_masked

    def accepts(self, password: str) -> bool:
        """Whether the password is theirs; takes as long either way."""
        return hmac.compare_digest(self._password.encode(), password.encode())

    def __repr__(self) -> str:
        return f"User({self.name!r}, is_reader={self.is_reader})"


class Users:
    """The owner (`default`) and the readers.

    Args:
        readers: name to password.
        personal: names of readers who may see personal data; the others read what is masked.
    """

    def __init__(
        self, owner_password: str, readers: Mapping[str, str], personal: Collection[str] = ()
    ) -> None:
        self._users = {OWNER: User(OWNER, owner_password, is_reader=False)}
        for name, password in readers.items():
            self._users[name] = User(name, password, is_reader=True, is_masked=name not in personal)

    def authenticate(self, name: str, password: str) -> User:
        """The user with this name and password.

        Raises:
            ServerError: there is none.
        """
        user = self._users.get(name or OWNER)
        if user is None or not user.accepts(password):
            raise ServerError(
                AUTHENTICATION_FAILED,
                f"{name}: Authentication failed: password is incorrect, or there is no user with such name",
            )
        return user


class Effect(IntEnum):
    """What a statement does to state that outlives it: the engine's own classes, in order of restriction."""

    READ_ONLY = 0
    MUTATING = 1
    MUTATING_GLOBAL = 2
    CONTROL = 3
    UNKNOWN = 4


@dataclass(frozen=True)
class Node:
    """A line of `EXPLAIN AST`: its text, the text of the node above it, and how deep it stands."""

    text: str
    parent: str
    depth: int

    @property
    def function(self) -> str:
        """The function's name in lower case, '' if it is none."""
        kind, _, rest = self.text.partition(" ")
        return rest.split(" ")[0].lower() if kind == "Function" else ""


def parse_tree(explained: str) -> list[Node]:
    """The nodes of `EXPLAIN AST`'s indented text, in order."""
    nodes: list[Node] = []
    above: list[str] = []
    for line in explained.split("\n"):
        text = line.lstrip(" ")
        if not text:
            continue
        depth = len(line) - len(text)
        del above[depth:]
        nodes.append(Node(text, above[-1] if above else "", depth))
        above.append(text)
    return nodes


# functions and table functions that leave the data directory and that no grant covers
_DENIED_FUNCTIONS = frozenset(
    {"file", "python", "eval", "executable", "arrowstream", "filesystem", "filecluster"}
)
# table functions whose argument is a list of columns, where a default could call a function unseen
_STRUCTURED = frozenset({"format", "input", "null", "generaterandom", "fuzzjson", "values"})
_STRUCTURE_IS_ONE_ARGUMENT = _STRUCTURED - {"values"}
_COLUMN_EXPRESSION = re.compile(
    r"\b(?:default|materialized|alias|ephemeral)\b.*\(", re.IGNORECASE | re.DOTALL
)

_SUSPECT = re.compile(
    r"""\b(?:file|python|eval|executable|arrowstream|filesystem|filecluster|infile)\b
      | \b(?:format|input|null|generaterandom|fuzzjson|values) ["`]? \s* (?:\(|/\*|--|\#)""",
    re.VERBOSE,
)
_VALUES_FORMAT = re.compile(r"(?:Identifier Values|Literal 'Values')(?: \(.*)?", re.IGNORECASE)
_PYTHON = re.compile(r"\bpython\s*\(")
_ESCAPED_NAME = re.compile(r"[`\"][^`\"]*\\")

# settings that this server keeps to itself: they would let data be read as code (see `queries`)
PRIVATE_SETTINGS = frozenset(
    {"input_format_values_interpret_expressions", "input_format_values_deduce_templates_of_expressions"}
)
_PRIVATE_SETTING = re.compile("|".join(sorted(PRIVATE_SETTINGS)))
_DISK_SETTING = re.compile(r"\b(?:disk|storage_policy|table_disk)\s*=", re.IGNORECASE)
# SQL in the strings of a dictionary's source (QUERY, WHERE) is not in the tree: calls of denied functions, and escapes
# other than of quotes, which could hide one
_SOURCE_SQL = re.compile(
    r"source\(.*(?:\b(?:"
    + "|".join(sorted(_DENIED_FUNCTIONS | _STRUCTURED))
    + r")\b[\\\"`]*\s*(?:\(|/\*|--|\#)|\\[^'n])",
    re.DOTALL,
)
_REMOTE_DICTIONARY = re.compile(
    r"SOURCE\(CLICKHOUSE\([^)]*\bHOST '(?!localhost'|127\.0\.0\.1')", re.IGNORECASE
)

_KEPT_ENGINES = frozenset(
    {prefix + "mergetree" for prefix in ("", "replacing", "summing", "aggregating", "collapsing",
                                         "versionedcollapsing", "graphite", "coalescing")}
    | {"memory", "log", "tinylog", "stripelog", "null", "set", "join", "view", "materializedview", "buffer", "merge",
       "dictionary", "generaterandom", "alias", "embeddedrocksdb", "timeseries", "atomic", "clickhouse"}
)  # fmt: skip
_KEPT_DICTIONARY_SOURCES = frozenset({"clickhouse", "null"})
_DICTIONARY_SOURCE = re.compile(r"FunctionWithKeyValueArguments\s+(\w+)")

_KEPT_GLOBAL = frozenset({"CreateSQLFunctionQuery", "DropFunctionQuery"})
_KEPT_CONTROL = frozenset(
    {
        "Set",
        "UseQuery",
        "CreateQuery",
        "DropQuery",
        "DetachQuery",
        "AttachQuery",
        "KillQueryQuery",
        "AlterQuery",
        "SYSTEM",
    }
)
_SESSION_CONTROL = frozenset({"Set", "UseQuery"})


# masked readers: statements that only read or describe, system tables that say nothing of what others ask, table
# functions that read nothing, and what would hide a name from the check
_MASKED_STATEMENTS = frozenset(
    {"SelectWithUnionQuery", "SelectIntersectExceptQuery", "SelectQuery", "DescribeQuery", "ShowTables", "ShowColumns",
     "ShowFunctions", "ShowCreateTableQuery", "ShowCreateViewQuery", "ShowCreateDatabaseQuery", "ExistsTableQuery",
     "ExistsViewQuery", "ExistsDatabaseQuery", "Explain", "Set", "UseQuery"}
)  # fmt: skip
_OPEN_SYSTEM_TABLES = frozenset(
    {"one", "numbers", "numbers_mt", "zeros", "databases", "tables", "columns", "functions", "settings",
     "data_type_families", "table_functions", "table_engines", "formats", "collations", "keywords", "time_zones",
     "build_options", "contributors"}
)  # fmt: skip
_OPEN_TABLE_FUNCTIONS = frozenset(
    {"numbers", "numbers_mt", "zeros", "zeros_mt", "generate_series", "generateseries", "values", "format", "view",
     "null"}
)  # fmt: skip
_IN = re.compile(r"(?:global)?(?:not)?(?:null)?in(?:ignoreset)?")
_IDENTIFIER_PARAMETER = re.compile(r":\s*identifier\s*\}")
_FILTERS = ("additional_table_filters", "additional_result_filter")


class Statement:
    """One statement under judgement.

    Args:
        text: the statement, without inline data.
        classify: the engine's classification: effect and number of statements.
        explain: the engine's syntax tree of a text; raises ServerError if it does not parse.
        normalise: the engine's own formatting of a text: keywords upper case, names without needless quotes.
    """

    def __init__(
        self,
        text: str,
        *,
        classify: Callable[[str], tuple[Effect, int]],
        explain: Callable[[str], str],
        normalise: Callable[[str], str],
    ) -> None:
        self.text = text
        self._explain = explain
        self._normalise = normalise
        self.effect, self.count = classify(text)

    @cached_property
    def lowered(self) -> str:
        """The text in lower case."""
        return self.text.lower()

    @cached_property
    def tree(self) -> list[Node]:
        """The syntax tree."""
        return parse_tree(self._explain(self.text))

    @cached_property
    def root(self) -> str:
        """What the statement is: `Set`, `CreateQuery`, `SYSTEM` ..."""
        return self.tree[0].text.split(" ")[0] if self.tree else ""

    @cached_property
    def normal_text(self) -> str:
        """The text in the engine's own formatting, in which no name is written with escapes."""
        return self._normalise(self.text)

    @cached_property
    def has_escaped_name(self) -> bool:
        """Whether a quoted name may hold an escape, and so not read as what it is."""
        return "\\" in self.text and _ESCAPED_NAME.search(self.text) is not None


class Policy:
    """Judges statements. `engines` are the engine's own lists of table engines, database engines and dictionary
    sources; those not kept are refused by name. `table_functions` are the engine's: masked readers have few."""

    def __init__(self, engines: frozenset[str], table_functions: frozenset[str] = frozenset()) -> None:
        self._hidden_functions = frozenset(name.lower() for name in table_functions) - _OPEN_TABLE_FUNCTIONS
        self._denied_engines = frozenset(name.lower() for name in engines) - _KEPT_ENGINES

    def check(self, statement: Statement, user: User, *, is_read_only: bool) -> None:
        """Let a statement pass, or raise.

        Raises:
            ServerError: several statements, a write by a reader or by GET, or something nobody may do here.
        """
        if statement.count > 1:
            raise ServerError(SYNTAX_ERROR, "Syntax error (Multi-statements are not allowed)")
        if statement.count == 0 or statement.effect is Effect.UNKNOWN:
            self._check_unknown(statement)
            return
        is_session_only = statement.effect is Effect.CONTROL and statement.root in _SESSION_CONTROL
        if (
            (user.is_reader or is_read_only)
            and statement.effect is not Effect.READ_ONLY
            and not is_session_only
        ):
            why = "" if user.is_reader else ". For queries over HTTP, method GET implies readonly"
            raise ServerError(READONLY, f"{user.name}: Cannot execute query in readonly mode{why}")
        if _PYTHON.search(statement.lowered) and _calls_python(statement.text):
            # before the engine sees it: it would look for the object as it parses, and load pandas to do so
            raise _refused("function python reaches outside the data directory")
        self._check_settings(statement)
        if statement.effect is Effect.CONTROL:
            self._check_control(statement)
        elif statement.effect is Effect.MUTATING_GLOBAL and statement.root not in _KEPT_GLOBAL:
            raise _refused(
                f"{statement.root}: users, grants and the system database are not managed through SQL here"
            )
        changes = statement.effect in (Effect.MUTATING, Effect.MUTATING_GLOBAL, Effect.CONTROL)
        is_definition = changes and statement.root in (
            "CreateQuery",
            "AttachQuery",
            "AlterQuery",
            "CreateSQLFunctionQuery",
        )
        if is_definition or statement.has_escaped_name or _SUSPECT.search(statement.lowered):
            self._check_functions(statement.tree, statement.lowered)
        if is_definition:
            self._check_definition(statement)
        if user.is_masked:
            self._check_masked(statement, user)

    def check_database(self, user: User, database: str) -> None:
        """Refuse a current database whose tables a masked reader must not name.

        Raises:
            ServerError: it is one.
        """
        if user.is_masked and database and not _is_open(database):
            raise _hidden(user, database)

    def check_setting(self, user: User, name: str) -> None:
        """Refuse settings of a masked reader that hold queries of their own, or that hide names from the check.

        Raises:
            ServerError: it is one.
        """
        if user.is_masked and (
            name.startswith(_FILTERS) or name in ("dialect", "allow_experimental_analyzer")
        ):
            raise ServerError(SETTING_CONSTRAINT_VIOLATION, f"Setting {name} should not be changed")

    def _check_masked(self, statement: Statement, user: User) -> None:
        """Refuse whatever leads to rows outside of `MASKED_DATABASES`: the engine has no grants for readers here, so
        each name in the syntax tree is looked at, and what the tree may not show is refused."""
        text = statement.normal_text.lower() if statement.has_escaped_name else statement.lowered
        if _IDENTIFIER_PARAMETER.search(text):
            raise ServerError(ACCESS_DENIED, f"{user.name}: Not enough privileges: names as parameters")
        if any(name in text for name in _FILTERS):
            raise ServerError(
                SETTING_CONSTRAINT_VIOLATION, "Setting additional_table_filters should not be changed"
            )
        if statement.root not in _MASKED_STATEMENTS:
            raise ServerError(ACCESS_DENIED, f"{user.name}: Not enough privileges: {statement.root}")
        tree = statement.tree
        if statement.root == "UseQuery":
            self.check_database(user, tree[0].text.split(" ")[1] if " " in tree[0].text else "")
        for place, node in enumerate(tree):
            kind, _, rest = node.text.partition(" ")
            if kind == "TableIdentifier":
                _check_table(user, rest.partition(" (alias")[0])
            name = node.function
            if not name:
                continue
            if name in self._hidden_functions or name.startswith(("dict", "joinget")) or "." in name:
                raise ServerError(ACCESS_DENIED, f"{user.name}: Not enough privileges: function {name}")
            if _IN.fullmatch(name):
                _check_in(user, tree, place)

    def check_values(self, text: str, explain: Callable[[str], str]) -> bool:
        """Whether the rows behind VALUES may hold expressions; False if they must be literals.

        Raises:
            ServerError: they call what nobody may call.
        """
        if not _SUSPECT.search(lowered := text.lower()) and not ("\\" in text and _ESCAPED_NAME.search(text)):
            return True
        try:
            tree = parse_tree(explain("SELECT " + text.strip().rstrip(";")))
        except ServerError:
            return False
        self._check_functions(tree, lowered)
        return True

    def check_structure(self, structure: str) -> None:
        """Refuse columns of an external table that compute something."""
        if _COLUMN_EXPRESSION.search(structure):
            raise _refused("a default expression in the structure of an external table")

    def _check_unknown(self, statement: Statement) -> None:
        """What does not parse may run, and fail with the engine's own message; what parses and has no class may not."""
        try:
            root = statement.root
        except ServerError:
            return
        raise ServerError(NOT_IMPLEMENTED, f"The embedded engine does not take {root or 'this statement'}")

    def _check_settings(self, statement: Statement) -> None:
        if "input_format_values_" in statement.lowered or statement.has_escaped_name:
            found = _PRIVATE_SETTING.search(statement.normal_text)
            if found:
                raise ServerError(
                    SETTING_CONSTRAINT_VIOLATION, f"Setting {found.group()} should not be changed"
                )

    def _check_control(self, statement: Statement) -> None:
        if "outfile" in statement.lowered:
            raise _refused("INTO OUTFILE writes files of the server; read the answer instead")
        if statement.root not in _KEPT_CONTROL:
            raise _refused(f"{statement.root} is not allowed on the embedded engine")

    def _check_definition(self, statement: Statement) -> None:
        for node in statement.tree:
            if node.function in self._denied_engines:
                raise _refused(f"engine {node.text.split(' ')[1]} reaches outside the data directory")
            source = _DICTIONARY_SOURCE.match(node.text)
            if (
                source
                and node.parent.startswith("Dictionary definition")
                and source.group(1).lower() not in _KEPT_DICTIONARY_SOURCES
            ):
                raise _refused(f"dictionary source {source.group(1)} reaches outside the data directory")
        # the tree shows no settings and no keys of a dictionary's source
        lowered = statement.lowered
        if ("disk" in lowered or "policy" in lowered or statement.has_escaped_name) and _DISK_SETTING.search(
            statement.normal_text
        ):
            raise _refused("disks and storage policies cannot be chosen on the embedded engine")
        if "dictionary" in lowered and _SOURCE_SQL.search(statement.normal_text.lower()):
            raise _refused("a dictionary whose query calls what reaches outside the data directory")
        if "host" in lowered and "dictionary" in lowered and _REMOTE_DICTIONARY.search(statement.normal_text):
            raise _refused("a dictionary of another server")

    def _check_functions(self, tree: list[Node], lowered: str) -> None:
        if "infile" in lowered and tree and tree[0].text.startswith("InsertQuery"):
            for node in tree[1:]:
                if node.depth == 1 and node.text.startswith("Literal"):
                    raise _refused("FROM INFILE reads files of the server; send the data in the body")
        for place, node in enumerate(tree):
            name = node.function
            if name in _DENIED_FUNCTIONS:
                raise _refused(f"function {name} reaches outside the data directory")
            if name in _STRUCTURED and node.parent.startswith(
                ("TableExpression", "CreateQuery", "InsertQuery")
            ):
                _check_table_function(name, tree, place)


def _calls_python(text: str) -> bool:
    found = list(statements.tokens(text.encode()))
    return any(token.is_word(b"PYTHON") and after.text == b"(" for token, after in itertools.pairwise(found))


def _check_table_function(name: str, tree: list[Node], place: int) -> None:
    inside = tree[place].depth + 2  # below the function stands one ExpressionList, below that its arguments
    arguments: list[Node] = []
    for node in tree[place + 1 :]:
        if node.depth < inside - 1:
            break
        if node.depth == inside:
            arguments.append(node)
    if name == "format" and arguments and _VALUES_FORMAT.fullmatch(arguments[0].text):
        # this format's rows may be expressions, and the text may be computed
        raise _refused("format(Values, ...); write values(...)")
    # format(NAME[, structure], data); values([structure,] rows ...); the others hold a structure alone
    structures = arguments[:-1] if name == "format" else arguments[:1] if name == "values" else arguments
    for node in structures:
        if node.text.startswith("Literal '") and _COLUMN_EXPRESSION.search(node.text):
            raise _refused(f"a default expression in the structure of {name}()")
        if node.function and name in _STRUCTURE_IS_ONE_ARGUMENT:
            raise _refused(f"an argument of {name}() that is computed; write it as a literal")


def _is_open(database: str) -> bool:
    return database in MASKED_DATABASES or database.lower() == "information_schema"


def _check_table(user: User, name: str) -> None:
    """Names without a database are of the current one, which `check_database` has seen, or of the query itself."""
    database, dot, table = name.partition(".")
    if dot and not _is_open(database) and not (database == "system" and table in _OPEN_SYSTEM_TABLES):
        raise _hidden(user, name)


def _check_in(user: User, tree: list[Node], place: int) -> None:
    """`x IN database.table`, which the tree shows as it shows columns."""
    inside = tree[place].depth + 2
    arguments: list[Node] = []
    for node in tree[place + 1 :]:
        if node.depth < inside - 1:
            break
        if node.depth == inside:
            arguments.append(node)
    for node in arguments[1:]:
        kind, _, rest = node.text.partition(" ")
        if kind == "Identifier":
            _check_table(user, rest.partition(" (alias")[0])


def _hidden(user: User, name: str) -> ServerError:
    return ServerError(
        ACCESS_DENIED,
        f"{user.name}: Not enough privileges. {name} may show personal data; this user reads "
        f"{', '.join(sorted(MASKED_DATABASES))} (MAILHOUSE_WAREHOUSE_PERSONAL_READERS)",
    )


def _refused(what: str) -> ServerError:
    return ServerError(ACCESS_DENIED, f"Refused by the embedded server: {what}")
