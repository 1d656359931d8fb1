"""`python -m tests.kill`."""

from .campaign import main

raise SystemExit(main())
