import enum
import functools
import pkgutil


class HookType(enum.Enum):
    AROUND = "around"
    REPLACE = "replace"


class HookRegistry:
    hooks = []

    @classmethod
    def register(cls, target, hook, hook_type=HookType.AROUND, *, source=None):
        cls.hooks.append((target, hook, hook_type))

    @classmethod
    def apply_hooks(cls):
        for target, hook, hook_type in cls.hooks:
            assert hook_type is HookType.AROUND
            place, name = target.rsplit(".", 1)
            holder = pkgutil.resolve_name(place)
            setattr(holder, name, functools.partialmethod(_around, hook, getattr(holder, name)))
        cls.hooks.clear()


def _around(self, hook, original, *arguments, **options):
    return hook(original, self, *arguments, **options)
