import os

from settings_memory import *

HERE = os.path.dirname(os.path.abspath(__file__))
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.path.join(HERE, "db.sqlite3"),
        "TEST": {"NAME": os.path.join(HERE, "databases", "test.sqlite3")},
    }
}
