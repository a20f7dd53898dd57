"""``python -m bitcrown``."""

from bitcrown.cli.main import main

raise SystemExit(main())
