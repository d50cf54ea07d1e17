"""What every refusal looks like."""

from typing import Any

import httpx2

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    503: "service_unavailable_error",
}


def refusal(response: httpx2.Response, status: int) -> dict[str, Any]:
    """Return the error of an answer after checking its shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req-")
    body = response.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert {"message", "type", "param", "code"} <= error.keys() <= {*error.keys(), "details"}
    assert error["type"] == TYPES[status]
    assert error["message"]
    assert (response.headers.get("x-should-retry") == "false") == (status == 409)
    assert ("retry-after" in response.headers) == (status == 503)
    return error
