"""The OpenAPI description says that every error is a problem document."""

from __future__ import annotations

from typing import Any


def test_every_operation_answers_errors_as_problem_documents(make_app: Any) -> None:
    described = make_app(orchestrator_docs=True).openapi()
    operations = [one for path in described["paths"].values() for one in path.values()]
    assert len(operations) > 20
    for operation in operations:
        content = operation["responses"]["default"]["content"]
        assert list(content) == ["application/problem+json"]
        assert "422" not in operation["responses"]
    assert set(described["components"]["schemas"]["ProblemDocument"]["required"]) >= {
        "status",
        "code",
        "detail",
    }
