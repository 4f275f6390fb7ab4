"""botocore's own paginators and waiters, on a client of ours.

They come from botocore's data files, so they are those of the botocore that is installed.
"""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["paginator", "waiter"]


def paginator(client: Any, operation: str) -> Any:
    """A `botocore.paginate.Paginator` of an operation, such as ``DescribeImages``.

    Raises:
        ImportError: botocore is not installed.
    """
    _need_botocore()
    from botocore.model import ServiceModel
    from botocore.paginate import Paginator, PaginatorModel

    model = ServiceModel(_data("service-2"), service_name="ec2").operation_model(operation)
    config = PaginatorModel(_data("paginators-1")).get_paginator(operation)
    return Paginator(getattr(client, _python_name(operation)), config, model)


def waiter(client: Any, name: str) -> Any:
    """A `botocore.waiter.Waiter`, such as ``store_image_task_complete``.

    Raises:
        ImportError: botocore is not installed.
        ValueError: there is none of that name, or it waits by an operation that the client has not.
    """
    _need_botocore()
    from botocore.waiter import NormalizedOperationMethod, Waiter, WaiterModel

    model = WaiterModel(_data("waiters-2"))
    for each in model.waiter_names:
        config = model.get_waiter(each)
        method = getattr(client, _python_name(config.operation), None)
        if _python_name(each) == name and method is not None:
            return Waiter(each, config, NormalizedOperationMethod(method))
    raise ValueError(f"Waiter does not exist: {name}")


def _need_botocore() -> None:
    try:
        import botocore  # noqa: F401
    except ModuleNotFoundError:
        raise ImportError("paginators and waiters are botocore's own: pip install 'amistore[aws]'") from None


def _python_name(operation: str) -> str:
    from botocore import xform_name

    return str(xform_name(operation))


@functools.cache
def _data(name: str) -> Any:
    """A data file of EC2; the service's own takes a second."""
    from botocore.loaders import create_loader

    return create_loader().load_service_model("ec2", name)
