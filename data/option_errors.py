"""Options with errors for people: what an unknown one may be meant for, what a union wants."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Any, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import (
    CoreSchema,
    ErrorDetails,
    InitErrorDetails,
    PydanticCustomError,
    core_schema,
)

_UNKNOWN = "extra_forbidden"

_KINDS = {
    "model_type": "a table",
    "path_type": "a path",
    "string_type": "text",
    "tuple_type": "a list",
}
"""What a value should be whose error is of such a type."""


class HintingModel(BaseModel):
    """Options that say of an unknown one which may be meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _readable(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(given)
        except ValidationError as error:
            lines = [_line(item, _hint(item, cls.model_fields)) for item in error.errors()]
            raise ValidationError.from_exception_data(error.title, lines) from error


def _hint(error: ErrorDetails, known: Iterable[str]) -> str:
    """An error's message; of an option that the model itself does not know, with what may be meant."""
    own = error["type"] == _UNKNOWN and len(error["loc"]) == 1
    return f"unknown option{meant(error['loc'][0], known)}" if own else error["msg"]


def _line(error: ErrorDetails, message: str) -> InitErrorDetails:
    kind = PydanticCustomError(error["type"], message)
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"])


def meant(name: object, known: Iterable[str]) -> str:
    """What a name is perhaps meant for, as the end of a message.

    >>> meant("num_step", ["num_steps", "batch_size"])
    '; did you mean num_steps?'
    """
    found = get_close_matches(str(name), known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


class OneOf:
    """Marks a union (`Annotated[Path | Table, OneOf]`) that has the errors of the member that fits best."""

    @classmethod
    def __get_pydantic_core_schema__(cls, union: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Pydantic's hook."""

        def validate(given: Any, of_union: ValidatorFunctionWrapHandler) -> Any:
            try:
                return of_union(given)
            except ValidationError as error:
                by_member = [_errors(member, given) for member in get_args(union)]
                lines = _closest(by_member, given)
                raise ValidationError.from_exception_data(error.title, lines) from error

        return core_schema.no_info_wrap_validator_function(validate, handler(union))


def _errors(kind: Any, given: Any) -> list[ErrorDetails]:
    try:
        TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        return error.errors()
    return []


def _closest(by_member: Sequence[list[ErrorDetails]], given: Any) -> list[InitErrorDetails]:
    """Errors of the member that knows most of what is given; of a value of no member's kind, their kinds."""
    inside = [errors for errors in by_member if _is_inside(errors[0])]
    if inside:
        return [_line(error, error["msg"]) for error in min(inside, key=_misfit)]
    kinds = dict.fromkeys(map(_kind, chain.from_iterable(by_member)))
    kind = PydanticCustomError("one_of", f"Input should be {' or '.join(kinds)}")
    return [InitErrorDetails(type=kind, input=given)]


def _is_inside(error: ErrorDetails) -> bool:
    """Whether a value is of a member's kind, and wrong in a part or as a whole."""
    return bool(error["loc"]) or error["type"] == "value_error"


def _misfit(errors: list[ErrorDetails]) -> tuple[int, int]:
    """Number of unknown options, and of all errors."""
    return sum(error["type"] == _UNKNOWN for error in errors), len(errors)


def _kind(error: ErrorDetails) -> str:
    return _KINDS.get(error["type"], error["msg"].removeprefix("Input should be "))
