"""List, verify and clean up the store of compiled parts."""

from __future__ import annotations

import argparse
from pathlib import Path

_DAY_S = 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", type=Path, default=Path("results/store"), metavar="DIR", help="default: %(default)s")
    used = argparse.ArgumentParser(add_help=False)
    used.add_argument(
        "--receipts",
        type=Path,
        metavar="DIR",
        help="receipts that record which bundles use which entries; default: `receipts` next to the store",
    )
    actions.add_parser("size", parents=[common], help="number of entries and their size")
    shown = actions.add_parser("list", parents=[common, used], help="every entry and the bundles that use it")
    shown.add_argument("--json", action="store_true", help="print everything as JSON")
    verify = actions.add_parser(
        "verify", parents=[common], help="re-hash all entries; exit with status 1 if any is damaged"
    )
    verify.add_argument(
        "--repair", action="store_true", help="remove damaged entries; the next build compiles them again"
    )
    gc = actions.add_parser("gc", parents=[common, used], help="remove unused entries")
    gc.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    gc.add_argument(
        "--days", type=float, default=1.0, metavar="N", help="keep entries used in the last N days; default: 1"
    )


def run(args: argparse.Namespace) -> None:
    {"size": _size, "list": _list, "verify": _verify, "gc": _gc}[args.action](args)


def _size(args: argparse.Namespace) -> None:
    from axzoo.store import Store
    from axzoo.store.upkeep import contents

    entries = list(contents(Store(args.store)))
    shared = sum(entry.size for entry in entries if entry.links)
    alone = sum(entry.size for entry in entries if not entry.links)
    print(f"{len(entries)} entries, {_mb(shared + alone)}")
    print(f"  {_mb(shared)} shared with bundles")
    print(f"  {_mb(alone)} only in the store")


def _list(args: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from axzoo.store import Store
    from axzoo.store.upkeep import contents, used_by

    store = Store(args.store)
    users, entries = used_by(_receipts(args), store), list(contents(store))
    if args.json:
        rows = [{**asdict(entry), "kind": entry.kind, "bundles": users.get(entry.key, [])} for entry in entries]
        print(json.dumps(rows, indent=2))
        return
    for entry in entries:
        bundles = ", ".join(users.get(entry.key, [])) or "unused"
        age = f"{entry.age_s / _DAY_S:.1f} d"
        print(f"{entry.key}  {_mb(entry.size):>10}  {age:>7}  {entry.kind:7}  {entry.recipe_summary:20}  {bundles}")


def _verify(args: argparse.Namespace) -> None:
    from axzoo.core.errors import AxzooError
    from axzoo.store import Store
    from axzoo.store.upkeep import contents, find_damage

    store = Store(args.store)
    action = "removed" if args.repair else "kept"
    count = 0
    for damage in find_damage(store, args.repair):
        print(f"{damage.entry.key}: {damage.reason}; {action}", flush=True)
        count += 1
    if count:
        hint = "the next build compiles them again" if args.repair else "remove them with --repair"
        raise AxzooError(
            f"{args.store} has {count} damaged entries: {hint}, and run `axzoo verify` on the bundles that link to them"
        )
    print(f"{sum(1 for _ in contents(store))} entries, all intact")


def _gc(args: argparse.Namespace) -> None:
    from axzoo.core.errors import AxzooError
    from axzoo.store import Store
    from axzoo.store.upkeep import collect, forget_removed_bundles, used_by

    if not 0 <= args.days < float("inf"):
        raise AxzooError(f"--days {args.days} is not valid: give a number of 0 or more")
    store = Store(args.store)
    removed, temporary = collect(store, used_by(_receipts(args), store), args.days * _DAY_S, args.dry_run)
    if not args.dry_run:
        forget_removed_bundles(store)
    for entry in removed:
        print(f"{entry.key}  {_mb(entry.size):>10}  {entry.kind:7}  {entry.recipe_summary}")
    verb = "would remove" if args.dry_run else "removed"
    freed = sum(entry.size for entry in removed if not entry.links)
    print(f"{verb} {len(removed)} entries, {_mb(freed)} of them in no bundle, and {len(temporary)} temporary files")


def _receipts(args: argparse.Namespace) -> Path:
    return Path(args.receipts or args.store.parent / "receipts")


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
