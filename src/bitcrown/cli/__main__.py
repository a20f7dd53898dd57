"""``python -m bitcrown.cli``."""

from bitcrown.cli.main import main

raise SystemExit(main())
