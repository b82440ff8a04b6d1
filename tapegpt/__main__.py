"""python -m tapegpt"""

import sys

from tapegpt.cli import main

sys.exit(main())
