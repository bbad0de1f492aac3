"""The base of what goes in and out."""

from typing import Any, Final

from pydantic import BaseModel

_made: Final[dict[object, dict[str, Any]]] = {}


class Model(BaseModel):
    """A model whose schema is made once: flask-openapi3 asks for it with each request, and it takes milliseconds."""

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the JSON schema; it is shared, so leave it as it is."""
        key = (cls, args, *sorted(kwargs.items()))
        if key not in _made:
            _made[key] = super().model_json_schema(*args, **kwargs)
        return _made[key]
