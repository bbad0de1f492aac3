"""Programs that others wrote, as they are used: each function calls one library the way its documentation does.

None of the libraries knows of btcbot. What a function returns is compared between the twin and the remote client.
"""

import asyncio
import csv
import sqlite3
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

Result = dict[str, object]
MAGIC = 20_240_306
MAX_BARS = 100  # of each request


def _forget(*packages: str) -> None:
    """Make the next import of `packages` a fresh one: they keep the MetaTrader5 that they found."""
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def pdmt5(symbol: str, now: datetime, login: int, folder: Path) -> Result:
    """Read everything as data frames and send orders through pdmt5's client."""
    _forget("pdmt5")
    from pdmt5 import Mt5Config, Mt5DataClient, Mt5RuntimeError

    day = timedelta(days=1)
    found: Result = {}
    with Mt5DataClient(config=Mt5Config(login=login, timeout=5000), retry_count=0) as client:
        mt5 = client.mt5
        found["version"] = client.version_as_dict()
        found["account"] = client.account_info_as_df().iloc[0].to_dict()
        found["terminal"] = client.terminal_info_as_dict()["maxbars"]
        found["symbols"] = [client.symbols_total(), len(client.symbols_get_as_df()), len(client.symbols_get_as_dicts(group="BTC*"))]
        assert client.symbol_select(symbol, True)
        info = client.symbol_info_as_dict(symbol)
        found["info"] = info
        tick = client.symbol_info_tick_as_dict(symbol)
        found["tick"] = tick
        bars = client.copy_rates_from_as_df(symbol, mt5.TIMEFRAME_M1, now, MAX_BARS, index_keys="time")
        found["bars"] = bars.to_numpy().tolist()
        found["hours"] = client.copy_rates_from_pos_as_dicts(symbol, mt5.TIMEFRAME_H1, 0, 24)
        found["range"] = len(client.copy_rates_range_as_df(symbol, mt5.TIMEFRAME_M5, now - day, now))
        found["ticks"] = client.copy_ticks_from_as_df(symbol, now - timedelta(hours=1), 50, mt5.COPY_TICKS_ALL).to_numpy().tolist()
        found["tick range"] = len(client.copy_ticks_range_as_df(symbol, now - timedelta(minutes=5), now, mt5.COPY_TICKS_INFO))
        assert client.market_book_add(symbol)
        found["book"] = client.market_book_get_as_dicts(symbol)
        assert client.market_book_release(symbol)
        request = {
            "action": mt5.TRADE_ACTION_DEAL,
            "symbol": symbol,
            "volume": 0.1,
            "type": mt5.ORDER_TYPE_BUY,
            "price": tick["ask"],
            "deviation": 20,
            "magic": MAGIC,
            "comment": "pdmt5",
            "type_time": mt5.ORDER_TIME_GTC,
            "type_filling": mt5.ORDER_FILLING_IOC,
        }
        found["margin"] = client.order_calc_margin(mt5.ORDER_TYPE_BUY, symbol, 0.1, tick["ask"])
        found["profit"] = client.order_calc_profit(mt5.ORDER_TYPE_BUY, symbol, 0.1, tick["ask"], tick["ask"] + 100)
        found["check"] = client.order_check_as_dict(request)["retcode"]
        found["sent"] = client.order_send_as_dict(request)
        held = client.positions_get_as_df(symbol=symbol, index_keys="ticket")
        found["positions"] = [client.positions_total(), held["volume"].tolist(), held["comment"].tolist()]
        # A ticket out of a data frame is a numpy integer, which the package refuses: pdmt5's users convert it.
        ticket = int(held.index[0])
        client.order_send({**request, "type": mt5.ORDER_TYPE_SELL, "position": ticket, "price": tick["bid"]})
        found["deals"] = client.history_deals_get_as_df(now - day, now + day).drop(columns="time").to_numpy().tolist()
        found["of position"] = [
            len(client.history_deals_get_as_dicts(position=ticket)),
            len(client.history_orders_get_as_df(position=ticket)),
        ]
        totals = client.history_deals_total(now - day, now + day), client.history_orders_total(now - day, now + day)
        found["totals"] = [*totals, client.orders_total(), len(client.orders_get_as_df())]
        try:
            client.symbol_info("no such symbol")
        except Mt5RuntimeError as error:
            found["unknown symbol"] = str(error)
    return found


def mt5cli(symbol: str, now: datetime, login: int, folder: Path) -> Result:
    """Run mt5cli's commands, as from a shell, into CSV, JSON and SQLite files."""
    _forget("mt5cli", "pdmt5")
    from mt5cli.cli import app

    def command(output: str, *arguments: str) -> Path:
        path = folder / output
        app(["--output", str(path), *arguments], standalone_mode=False)
        return path

    def rows(output: str, *arguments: str) -> list[list[str]]:
        with command(output, *arguments).open(newline="") as file:
            return list(csv.reader(file))

    day, deal = timedelta(days=1), f'"symbol": "{symbol}", "action": 1, "volume": 0.2, "type_filling": 1, "magic": {MAGIC}'
    server = now.replace(tzinfo=None)  # mt5cli wants the server's wall clock; this one's is UTC
    begin, end, later = (moment.isoformat() for moment in (server - timedelta(minutes=30), server, server + day))
    found: Result = {}
    found["rates"] = rows("a.csv", "rates-from", "--symbol", symbol, "--timeframe", "M1", "--date-from", end, "--count", "10")
    found["pos"] = rows("b.csv", "rates-from-pos", "--symbol", symbol, "--timeframe", "H1", "--start-pos", "0", "--count", "5")
    found["range"] = rows("c.csv", "rates-range", "--symbol", symbol, "--timeframe", "M5", "--date-from", begin, "--date-to", end)
    found["latest"] = rows("d.csv", "latest-rates", "--symbol", symbol, "--timeframe", "M1", "--count", "7")
    found["ticks"] = rows("e.csv", "ticks-range", "--symbol", symbol, "--date-from", begin, "--date-to", end, "--flags", "ALL")
    found["ticks from"] = rows("f.csv", "ticks-from", "--symbol", symbol, "--date-from", begin, "--count", "9", "--flags", "INFO")
    for name in ("account-info", "terminal-info", "symbols", "orders", "positions", "version"):
        found[name] = rows(f"{name}.csv", name)
    for name in ("symbol-info", "symbol-info-tick", "minimum-margins"):
        found[name] = rows(f"{name}.csv", name, "--symbol", symbol)
    found["summary"] = len(rows("summary.csv", "mt5-summary"))
    found["check"] = rows("check.csv", "order-check", "--request", f'{{{deal}, "type": 0}}')
    found["sent"] = rows("sent.csv", "order-send", "--yes", "--request", f'{{{deal}, "type": 0, "comment": "mt5cli"}}')
    found["dry"] = rows("dry.csv", "close-positions", "--symbol", symbol, "--dry-run")[1:]
    found["closed"] = rows("closed.csv", "close-positions", "--symbol", symbol, "--yes")[1:]
    found["left"] = rows("left.csv", "positions")[1:]
    found["deals"] = rows("deals.csv", "history-deals", "--date-from", begin, "--date-to", later)
    found["history"] = rows("history.csv", "history-orders", "--date-from", begin, "--date-to", later)
    datasets = [f"--dataset={name}" for name in ("rates", "history-deals", "history-orders", "symbols")]
    span = ["--date-from", begin, "--date-to", later, "--timeframe", "M1", "--flags", "ALL"]
    path = command("all.db", "collect-history", "--symbol", symbol, *span, *datasets)
    with sqlite3.connect(path) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table' order by name")]
        rows_of = {name: database.execute(f"select * from {name}") for name in tables}  # noqa: S608 -- mt5cli's own names
        found["tables"] = {name: len(rows.fetchall()) for name, rows in rows_of.items()}
    return found


def mt5py(symbol: str, now: datetime, login: int, folder: Path) -> Result:
    """Trade with mt5py's Trader: market and pending orders, stops, partial closes, reports."""
    _forget("MT5pytrader")
    import MetaTrader5 as mt5
    from MT5pytrader import Trader

    found: Result = {}
    with Trader(comment="mt5py", magic=MAGIC) as trader:
        tick = mt5.symbol_info_tick(symbol)
        found["buy"] = trader.open_buy(symbol, 0.3, stop_loss=200_000, take_profit=400_000).status
        found["sell"] = trader.open_sell(symbol, 0.1).status
        buys = trader.positions(symbol=symbol, side="buy")
        ticket = buys[0].ticket
        found["held"] = trader.get_open_positions(symbol).to_numpy().tolist()
        found["stop"] = trader.modify_sl(ticket_id=ticket, sl=tick.bid - 1500).status
        found["target"] = trader.modify_tp(ticket_id=ticket, tp=tick.bid + 3500).status
        found["again"] = trader.modify_tp(ticket_id=ticket, tp=tick.bid + 3500).status
        found["even"] = trader.break_even(ticket_id=ticket).status
        found["trail"] = [result.status for result in trader.run_trailing_stop(ticket, 100_000, max_polls=2, interval=0.01)]
        found["part"] = [result.status for result in trader.close_partial_buy(0.34, symbol)]
        limit = trader.open_buy_limit(symbol, tick.bid - 1000, 0.1)
        stop = trader.open_sell_stop(symbol, tick.bid - 1200, 0.1)
        late = trader.open_buy_stop_limit(symbol, tick.ask + 1000, tick.ask + 900, 0.1)
        found["pending"] = [limit.status, stop.status, late.status, len(trader.get_orders(symbol))]
        found["modified"] = trader.modify_order(limit.order, price=tick.bid - 1100, tp=tick.bid + 100).status
        found["cancelled"] = [trader.cancel_order(one.order).status for one in (limit, stop, late)]
        found["orders"] = [order._asdict() for order in trader.get_orders(symbol)]
        found["watched"] = trader.watch_positions(lambda event: None, symbol=symbol, interval=0.01, max_polls=2)
        found["profit"] = trader.running_profit(symbol)
        found["margin"] = trader.margin_required(symbol, "buy", 0.1)
        risk = trader.calculate_volume(symbol, "buy", tick.ask, tick.ask - 500, 100.0)
        found["risk"] = repr(risk)
        found["check"] = trader.check_order(symbol, "buy", 0.1).valid
        found["closed"] = [result.status for result in (*trader.close_buy(symbol), *trader.close_sell(symbol))]
        day = timedelta(days=1)
        found["report"] = trader.performance_report(now - day, now + day, symbol=symbol)
        found["rates"] = trader.get_rates(symbol, mt5.TIMEFRAME_M5, now - timedelta(hours=2), now).to_numpy().tolist()
        found["ticks"] = len(trader.get_ticks(symbol, now - timedelta(minutes=3), now))
    return found


def aiomql(symbol: str, now: datetime, login: int, folder: Path) -> Result:
    """Let aiomql, whose calls come from threads of its own, look around and trade."""
    _forget("aiomql")
    from aiomql.core import Config, OrderFilling, OrderTime, OrderType, TimeFrame
    from aiomql.lib import Account, History, Order, Positions, Symbol, Terminal

    async def main() -> Result:
        found: Result = {}
        Config(login=login, password="not looked at", server="Twin-Crypto", root=str(folder))
        async with Account() as account:
            found["account"] = [account.login, account.balance, str(account.margin_mode)]
            terminal = Terminal()
            found["terminal"] = [await terminal.initialize(), str(await terminal.get_version()), await terminal.symbols_total()]
            market = Symbol(name=symbol)
            found["initialized"] = await market.initialize()
            found["tick"] = (await market.info_tick()).dict(exclude={"Index"})
            found["book"] = len(await market.book_get())
            candles = await market.copy_rates_from_pos(timeframe=TimeFrame.H1, count=30)
            found["candles"] = [len(candles), candles[-1].close, str(candles.timeframe)]
            found["range"] = len(await market.copy_rates_range(timeframe=TimeFrame.M15, date_from=now - timedelta(hours=5), date_to=now))
            found["from"] = len(await market.copy_rates_from(timeframe=TimeFrame.M1, date_from=now, count=20))
            found["ticks"] = len(await market.copy_ticks_from(date_from=now - timedelta(minutes=10), count=15))
            found["tick range"] = len(await market.copy_ticks_range(date_from=now - timedelta(minutes=10), date_to=now))
            order = Order(
                symbol=symbol,
                volume=0.1,
                type=OrderType.BUY,
                price=market.tick.ask,
                magic=MAGIC,
                comment="aiomql",
                type_filling=OrderFilling.IOC,
                type_time=OrderTime.GTC,
                sl=market.tick.bid - 500,
                tp=market.tick.bid + 500,
            )
            found["calculated"] = [await order.calc_margin(), await order.calc_profit(), await order.calc_loss()]
            found["check"] = (await order.check()).retcode
            sent = await order.send()
            found["sent"] = [sent.retcode, sent.volume, sent.price]
            found["pending"] = [await order.orders_total(), len(await order.get_pending_orders(symbol=symbol))]
            positions = Positions()
            held = await positions.get_positions(symbol=symbol)
            found["held"] = [[p.volume, p.comment, p.sl, p.tp] for p in held]
            found["total"] = await positions.get_total_positions()
            found["closed"] = await positions.close_all()
            history = History(date_from=now - timedelta(days=1), date_to=now + timedelta(days=1), use_utc=False)
            await history.initialize()
            found["history"] = [len(history.deals), len(history.orders), len(history.get_deals_by_position(position=held[0].ticket))]
            await market.book_release()
        return found

    return asyncio.run(main())


def pymt5adapter(symbol: str, now: datetime, login: int, folder: Path) -> Result:
    """Use pymt5adapter's context manager, its typed functions, its orders and the package's own helpers behind it."""
    _forget("pymt5adapter")
    import pymt5adapter as mta
    from pymt5adapter.oem import Buy, Close, Sell
    from pymt5adapter.order import Order
    from pymt5adapter.symbol import Symbol
    from pymt5adapter.trade import Trade

    day = timedelta(days=1)
    found: Result = {}
    with mta.connected(ensure_trade_enabled=True, raise_on_errors=False, timeout=5000) as connection:
        found["connected"] = [connection.ping().terminal >= 0, mta.version(), mta.last_error()]
        found["symbols"] = [mta.symbols_total(), [s.name for s in mta.symbols_get(group="*USD")]]
        market = Symbol(symbol)
        found["spread"] = market.spread
        found["bars"] = mta.copy_rates_from_pos(symbol, mta.TIMEFRAME.M15, 0, 20)["close"].tolist()
        found["range"] = len(mta.copy_rates_range(symbol, mta.TIMEFRAME.M1, now - timedelta(minutes=20), now))
        found["ticks"] = len(mta.copy_ticks_from(symbol, now - timedelta(minutes=5), 12, mta.COPY_TICKS.ALL))
        trade = Trade(symbol, magic=MAGIC)
        found["bought"] = trade.buy(0.1, comment="pymt5adapter", type_filling=mta.ORDER_FILLING.IOC).retcode
        found["stops"] = trade.modify_sltp_by_ticks(sl=50_000, tp=90_000).retcode
        position = trade.refresh().position
        found["position"] = [position.volume, position.comment, position.sl, position.tp]
        tick = mta.symbol_info_tick(symbol)
        pending = Order.as_buy_limit(
            symbol=symbol, volume=0.1, price=round(tick.bid - 900, 2), type_filling=mta.ORDER_FILLING.RETURN
        ).send()
        found["pending"] = [pending.retcode, len(mta.orders_get(symbol=symbol)), mta.orders_total()]
        found["removed"] = Order.as_delete_pending(pending.order).send().retcode
        found["flat"] = Order.as_flatten(position)(type_filling=mta.ORDER_FILLING.IOC).send().retcode
        # The package's own helpers send no filling mode, so FOK.
        found["helpers"] = [Buy(symbol, 0.1).retcode, Sell(symbol, 0.2).retcode, len(mta.positions_get(symbol=symbol)), Close(symbol)]
        found["margin"] = mta.order_calc_margin(mta.ORDER_TYPE.SELL, symbol, 1.0, tick.bid)
        found["profit"] = mta.order_calc_profit(mta.ORDER_TYPE.SELL, symbol, 1.0, tick.bid, tick.bid - 10.0)
        deals = mta.history_deals_get(now - day, now + day)
        found["deals"] = [[d.type, d.entry, d.volume, d.profit] for d in deals]
        found["orders"] = [len(mta.history_orders_get(now - day, now + day)), mta.history_deals_total(now - day, now + day)]
    return found


PROGRAMS: dict[str, Callable[[str, datetime, int, Path], Any]] = {
    "pdmt5": pdmt5,
    "mt5cli": mt5cli,
    "mt5py": mt5py,
    "aiomql": aiomql,
    "pymt5adapter": pymt5adapter,
}
