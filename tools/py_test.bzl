# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`py_test` that runs its module under pytest.

The native rule would execute the module as a script, which defines the tests and passes without
having run one.
"""

def py_test(name, srcs, deps = [], data = [], **kwargs):
    native.py_test(
        name = name,
        srcs = srcs + ["//tests:run_pytest.py"],
        main = "//tests:run_pytest.py",
        args = ["$(location :%s)" % src for src in srcs],
        data = data + ["//:pyproject.toml"],
        deps = deps + ["//tests:conftest"],
        **kwargs
    )
