"""The settings of `tidegate serve`: their types and their defaults.

Each setting is a flag, an environment variable and a key of the TOML file under one name. What is
wrong with a value is said by its parser, where the value came from by the command line.
"""

from tidegate.config.events import EventConfig as EventConfig
from tidegate.config.flags import ConfigError as ConfigError
from tidegate.config.server import PROCESS as PROCESS
from tidegate.config.server import WATCH as WATCH
from tidegate.config.server import Config as Config
from tidegate.config.server import LogFormat as LogFormat
from tidegate.config.server import LogLevel as LogLevel
from tidegate.config.server import Transport as Transport
from tidegate.config.stores import StoreConfig as StoreConfig
