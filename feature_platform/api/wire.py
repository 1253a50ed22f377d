"""
The two wire forms of an online read: one entity, and columns (the form that Feast's clients speak).

Knows the registry and JSON values. Knows neither HTTP nor the online store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import islice
from math import isfinite
from typing import Any, Final

import msgspec

from feature_platform.api.bodies import JsonObject
from feature_platform.api.problems import Problem, nearest
from feature_platform.dtypes import from_micros, resolve
from feature_platform.errors import DtypeError
from feature_platform.online.answers import OnlineFeatures
from feature_platform.online.retrieval import OnlineQuestion
from feature_platform.registry import Registry

__all__ = ["EPOCH", "MAX_VALUES", "Column", "OnlineRequest", "Shape", "WireForms", "encode_answer"]

MAX_VALUES: Final = 100_000
"""Rows times features of one request at most: about 0.2 s of one core, during which nobody else is answered."""

EPOCH: Final = "1970-01-01T00:00:00Z"
"""What the columnar form says where there is no event timestamp: Feast's clients parse each of them, a null too."""

_OPTIONS: Final = ("features", "feature_service", "entities", "full_feature_names", "metadata")
_SERVICE_OPTIONS: Final = ("entities", "metadata")
_LONGEST_REFERENCE: Final = 201  # two names of at most 100 letters, and the colon
_SHAPES_KEPT: Final = 256
_FIELDS_COMPARED: Final = 20

_to_json = resolve(datetime).to_json or str
Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Column:
    """
    One feature of an answer.

    Attributes:
        name: In the answer.
        view: Its view's name.
        feature: Its own name.
        to_json: From the value to JSON; None where they are the same.
        is_float: Whether finite values are the same.
    """

    name: str
    view: str
    feature: str
    to_json: Convert | None
    is_float: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """
    What requests for the same features have in common; made once and kept.

    Attributes:
        question: The features, resolved.
        keys: Join key to the strict parser of its JSON values.
        texts: The join keys that are strs, whose values most often are what was sent.
        columns: The features, in the order asked.
    """

    question: OnlineQuestion
    keys: Mapping[str, Convert]
    texts: frozenset[str]
    columns: Sequence[Column]


class OnlineRequest(msgspec.Struct, frozen=True):
    """
    One request, understood.

    Attributes:
        shape: Which features.
        entities: The join keys' values as they were sent, by column.
        rows: The same as Python values, by row.
        is_columnar: Which of the two forms to answer in.
        has_metadata: Whether the answer says where each view's values come from; the one-entity form adds event timestamps too.
    """

    shape: Shape
    entities: Mapping[str, Sequence[object]]
    rows: list[dict[str, object]]
    is_columnar: bool
    has_metadata: bool


class WireForms:
    """
    Understands request bodies.

    Args:
        registry: Whose features are asked for.
        project: Prefix of the online store's keys.
        max_entities: Rows of one request at most.
    """

    def __init__(self, registry: Registry, project: str, max_entities: int) -> None:
        self._registry, self._project = registry, project
        self._max_entities = max_entities
        self._max_features = sum(len(view.features) for view in registry.views.values())
        self._shape_of = lru_cache(_SHAPES_KEPT)(self._resolve)

    def parse(self, body: JsonObject) -> OnlineRequest:
        """
        Understand a body that names its features.

        Raises:
            Problem: 422; names the field.
            FeaturePlatformError: A name that is not declared, or names that clash.
        """
        return self._parse(self._named_shape(body), body, _OPTIONS)

    def parse_for(self, service: str, body: JsonObject) -> OnlineRequest:
        """
        Understand a body for a service that is named elsewhere.

        Raises:
            Problem: 422; names the field.
        """
        return self._parse(self._shape_of(service, full_feature_names=False), body, _SERVICE_OPTIONS)

    def _named_shape(self, body: JsonObject) -> Shape:
        full_feature_names = _flag(body, "full_feature_names")
        if "features" in body and "feature_service" in body:
            raise _invalid("features and feature_service exclude each other.\nSend one of them.", "feature_service")
        if "feature_service" in body:
            service = body["feature_service"]
            if not isinstance(service, str):
                raise _invalid("feature_service is not a string.\nName one service.", "feature_service")
            return self._shape_of(service[:_LONGEST_REFERENCE], full_feature_names=full_feature_names)
        if "features" not in body:
            meant = _meant(body, "features")
            said = f"\nDid you mean it by {meant!r}?" if meant else ""
            raise _invalid(f"no features are asked for.\nSend features (a list of names) or feature_service.{said}", "features")
        features = body["features"]
        if not isinstance(features, list) or not set(map(type, features)) <= {str}:
            raise _invalid("features is not a list of strings.\nName features as 'view:feature', or bare where that is unique.", "features")
        if len(features) > self._max_features:
            detail = f"features has {len(features)} names, and only {self._max_features} are declared.\nAsk for each once."
            raise _invalid(detail, "features")
        return self._shape_of(tuple([one[:_LONGEST_REFERENCE] for one in features]), full_feature_names=full_feature_names)

    def _resolve(self, features: tuple[str, ...] | str, *, full_feature_names: bool) -> Shape:
        asked = self._registry.service(features) if isinstance(features, str) else features
        question = OnlineQuestion(self._registry, self._project, asked, full_feature_names=full_feature_names)
        keys = {name: dtype.from_json or (lambda value: value) for name, dtype in question.join_keys.items()}
        columns = [
            Column(ref.column, ref.view.name, ref.feature.name, ref.feature.type.to_json, ref.feature.type.family == "float")
            for ref in question.refs
        ]
        texts = frozenset(name for name, dtype in question.join_keys.items() if dtype.family == "str")
        return Shape(question, keys, texts, columns)

    def _parse(self, shape: Shape, body: JsonObject, options: Sequence[str]) -> OnlineRequest:
        has_metadata = _flag(body, "metadata")
        sent = {name: value for name, value in body.items() if name not in options}
        if "entities" not in body:
            _check_names(sent, shape.keys, options, "")
            row = {name: _value(parse, sent[name], name, is_text=name in shape.texts) for name, parse in shape.keys.items()}
            return OnlineRequest(shape, {name: [sent[name]] for name in shape.keys}, [row], is_columnar=False, has_metadata=has_metadata)
        if sent:
            name = next(iter(sent))
            if name in shape.keys:
                raise _invalid(f"join key {name!r} stands beside entities.\nPut it inside: {{'entities': {{{name!r}: [...]}}}}.", name)
            raise _unknown(name, list(options), "")
        entities = body["entities"]
        if not isinstance(entities, dict):
            raise _invalid("entities is not an object.\nSend a list of values for every join key.", "entities")
        _check_names(entities, shape.keys, (), "entities.")
        rows = self._rows(shape, entities)
        return OnlineRequest(shape, {name: entities[name] for name in shape.keys}, rows, is_columnar=True, has_metadata=has_metadata)

    def _rows(self, shape: Shape, entities: Mapping[str, object]) -> list[dict[str, object]]:
        lists: dict[str, list[object]] = {}
        for name in shape.keys:
            values = entities[name]
            if not isinstance(values, list):
                raise _invalid(f"entities.{name} is not a list.\nSend one value for every row.", f"entities.{name}")
            lists[name] = values
        lengths = {name: len(values) for name, values in lists.items()}
        if len(set(lengths.values())) > 1:
            raise _invalid(f"the lists in entities differ in length: {lengths}.\nSend one value of each for every row.", "entities")
        # Features of everybody at once have no join keys, and one row.
        count = next(iter(lengths.values()), 1)
        if count > self._max_entities:
            detail = f"{count} entities are asked about, and at most {self._max_entities} may be.\nAsk in several requests."
            raise _invalid(detail, "entities")
        if count * len(shape.columns) > MAX_VALUES:
            detail = f"{count} entities x {len(shape.columns)} features are more than {MAX_VALUES} values.\nAsk in several requests."
            raise _invalid(detail, "entities")
        parsed = {
            name: values
            if name in shape.texts and set(map(type, values)) == {str} and "".join(values).isascii()  # type: ignore[arg-type]
            else [_value(shape.keys[name], value, f"entities.{name}[{row}]") for row, value in enumerate(values)]
            for name, values in lists.items()
        }
        if len(parsed) == 1:
            ((name, values),) = parsed.items()
            return [{name: value} for value in values]
        return [{name: values[row] for name, values in parsed.items()} for row in range(count)]


def encode_answer(request: OnlineRequest, answer: OnlineFeatures) -> JsonObject:
    """Return the body of an answer, in the form of its request."""
    columns, found = request.shape.columns, answer.columns
    if not request.is_columnar:
        body: JsonObject = {name: values[0] for name, values in request.entities.items()}
        body["features"] = {one.name: _json_values(one, found[one.name].values)[0] for one in columns}
        body["statuses"] = {one.name: found[one.name].statuses[0] for one in columns}
        if request.has_metadata:
            times = {one.name: found[one.name].times[0] for one in columns}
            body["event_timestamps"] = {name: None if time is None else _instant(time) for name, time in times.items()}
            body["views"] = answer.views
        return body
    results: list[JsonObject] = [
        {"values": values, "statuses": ["PRESENT"] * len(values), "event_timestamps": [EPOCH] * len(values)}
        for values in request.entities.values()
    ]
    encoded: dict[int, msgspec.Raw] = {}  # columns of one view share the lists of their times, and mostly of their statuses
    for one in columns:
        column = found[one.name]
        if id(column.times) not in encoded:
            encoded[id(column.times)] = _encoded([EPOCH if time is None else _instant(time) for time in column.times])
        if id(column.statuses) not in encoded:
            encoded[id(column.statuses)] = _encoded(column.statuses)
        results.append(
            {
                "values": _json_values(one, column.values),
                "statuses": encoded[id(column.statuses)],
                "event_timestamps": encoded[id(column.times)],
            }
        )
    metadata: JsonObject = {"feature_names": [*request.entities, *(one.name for one in columns)]}
    if request.has_metadata:
        metadata["views"] = answer.views
    return {"metadata": metadata, "results": results}


def _encoded(values: list[Any]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(values))


def _json_values(column: Column, values: list[Any]) -> list[Any]:
    convert = column.to_json
    if convert is None:
        return values
    # One sum tells whether floats are all finite: it is not, if one is not. (It may overflow, or meet a None: then one by one.)
    if column.is_float and None not in values and isfinite(sum(values)):
        return values
    return [None if value is None else convert(value) for value in values]


@lru_cache(maxsize=16_384)
def _instant(micros: int) -> str:
    # Rows of one snapshot share their time, and values are read again and again.
    return str(_to_json(from_micros(micros)))


def _flag(body: JsonObject, name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise _invalid(f"{name} is neither true nor false.", name)
    return value


def _value(parse: Convert, value: object, field: str, *, is_text: bool = False) -> object:
    if is_text and type(value) is str and value.isascii():
        return value
    if value is None:
        raise _invalid(f"{field} is null.\nA join key has a value: leave the row out.", field)
    if isinstance(value, (list, dict)):  # no key's value has parts, and repeating one in a message could nest too deep
        raise _invalid(f"{field} is {'a list' if isinstance(value, list) else 'an object'}, not one value.", field)
    try:
        return parse(value)
    except DtypeError as exc:
        raise _invalid(f"{field}: {exc}", field) from exc


def _check_names(sent: Mapping[str, object], keys: Mapping[str, Convert], options: Sequence[str], prefix: str) -> None:
    unknown = [name for name in sent if name not in keys]
    for name in keys:
        if name not in sent:
            meant = _meant(unknown, name)
            said = f"\nDid you mean it by {prefix + meant!r}?" if meant else f"\nThe features asked for need: {', '.join(keys)}."
            raise _invalid(f"join key {prefix + name!r} is missing.{said}", prefix + name, name if meant else None)
    if unknown:
        raise _unknown(unknown[0], [*keys, *options], prefix)


def _meant(sent: Iterable[str], wanted: str) -> str | None:
    """Return the field that was probably meant by another; only the first few are looked at, for a body may have 100,000."""
    return next((name for name in islice(sent, _FIELDS_COMPARED) if nearest(name, [wanted])), None)


def _unknown(name: str, known: list[str], prefix: str) -> Problem:
    close = nearest(name, known)
    said = f"Did you mean {prefix + close!r}? " if close else ""
    return _invalid(f"field {prefix + name[:100]!r} is not known.\n{said}Known: {', '.join(known) or 'nothing'}.", prefix + name, close)


def _invalid(detail: str, field: str, suggestion: str | None = None) -> Problem:
    return Problem(422, detail, kind="invalid-request", field=field, suggestion=suggestion)
