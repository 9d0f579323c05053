// Package benchlb compares kthwd --role=lb with Debian's nginx (the guide's
// stream block), Debian's HAProxy (mode tcp) and a plain tcpproxy.
//
//	make bench-lb                                               # everything, about 22 minutes
//	KTHWD_BENCH_ROUNDS=1 make bench-lb                          # a first look, 1.5 minutes
//	KTHWD_BENCH_ONLY=requests,connections make bench-lb         # a part of it
//	KTHWD_LB_BIN=PROGRAM KTHWD_BENCH_LB=1 go test -v ./test/benchlb # a program that takes the same flags
//
// It prints a table and one line of JSON that begins with {"bench":"kthwd-lb". A missed
// target is reported but does not fail the test; a connection that is refused, reset or
// closed while idle does.
//
// To publish a run, append one line to history.jsonl here, then run make golden, which
// writes docs/performance.md:
//
//	{"commit":"…","date":"…","machine":"two cores; nothing else ran","note":"…","run":LINE}
//
// where LINE is the line of JSON, and date is the day of the commit.
//
// # What is compared
//
// The balancers take turns, part by part: A B C D for requests, A B C D for
// connections, and so on; the next round starts with another one. Each turn has a new
// network namespace, so that it has no closed connections of the previous turn, a
// backend with three addresses, and a balancer just started as user 65534: for root,
// pipes of 1 MiB are unlimited, and balancers that splice are faster than in service.
// All traffic goes through lo.
//
// nginx has one worker per processor, enough worker_connections, no access log, and
// defaults otherwise. HAProxy has TCP checks, the timeouts that it demands, and defaults
// otherwise. kthwd has --check=tcp, no metrics listener, and defaults otherwise.
// tcpproxy is tcpproxy.To one backend.
//
// The load generator and the backend are one thread each, on bare epoll, with system
// calls without notice to Go's scheduler, so they cost about as much as a C program. An
// exchange is a request of 100 bytes and a response of 1 KiB. The parts, by the names
// that KTHWD_BENCH_ONLY takes, separated by commas:
//
//	requests     64 kept-alive connections, each with the next request upon the response
//	connections  64 clients that connect, make one exchange, close, and repeat
//	bulk         one stream; the backend sends from a file in memory, the client
//	             drops the data without copying it
//	idle         10 000 connections (fewer where the descriptor limit is below
//	             20 600; a third of that for tcpproxy) after one exchange, at most
//	             64 being opened at a time; memory is read 3 s after the last
//	latency      requests at a fixed rate, half of what the slowest balancer managed,
//	             over 64 connections; through the balancer and past it, sixteen times in
//	             turns of a quarter of a second; the result is the median of the turns'
//	             percentiles through the balancer minus the median of those past it
//	mixed        1000 small requests per second over 64 connections, while two streams
//	             move as much as they can, and while they move 4 Gbit/s together; the
//	             result is the median of the percentiles of six turns of a second, with the
//	             balancer, not what it adds. Streams without a bound are others through each
//	             balancer: the one that moves most leaves least of the two cores, and of the
//	             backend's thread, to the small requests
//	burst        5000 clients connect at once, make one exchange each, and close; all balancers
//	             stand beside each other and take eight turns, burst by burst; the result is
//	             the median of the percentiles, and of the ratios of the turns. A client that
//	             is not served fails the test, and what the listen queue loses is counted
//	checks       kthwd only, without clients: it checks 60 backends, each of them a server of
//	             Go with TLS on 127.0.1.x, for five times KTHWD_BENCH_PHASE, and then another
//	             one with --check=none runs as long; the result is the difference
//
// CPU time is user and system time of the balancer with its workers, from the
// first counted request to the last, divided by the number of requests. On loopback the
// kernel accounts delivery to the sender: for all balancers alike, the figure includes
// the delivery of sent data, not of received data. It is the figure least disturbed by
// other users of the machine.
//
// On a shared machine, many short turns are more reliable than few long ones:
// KTHWD_BENCH_PHASE=1s KTHWD_BENCH_ROUNDS=9. Rates and latencies of a turn during which
// other processes used the machine (a row of the table) are worth little; the ratios of
// the pairs, and CPU times, are worth more.
//
// Settings, all from the environment:
//
//	KTHWD_BENCH_LB=1          run; without it the benchmark is skipped
//	KTHWD_LB_BIN, KTHWD_BIN   kthwd, the first one set; without either, only the others are measured
//	KTHWD_BENCH_ROUNDS=5      rounds
//	KTHWD_BENCH_ONLY=a,b      these parts only
//	KTHWD_BENCH_BALANCERS=a,b of kthwd,nginx,haproxy,tcpproxy these only
//	KTHWD_BENCH_PHASE=3s      how long a part is measured, after half a second of warm-up
//	KTHWD_BENCH_CLIENTS=64    connections of requests, connections and latency
//	KTHWD_BENCH_IDLE=10000    connections of idle
//	KTHWD_BENCH_RATE=N        requests per second of latency; by default half of the slowest balancer's rate
//	KTHWD_BENCH_QUIET=2s      how long to wait for a quiet machine before a turn
//	KTHWD_BENCH_REDO=0        how often to repeat a turn in which others used more than 15 %
//	                          of the machine; the least disturbed attempt counts
//	KTHWD_BENCH_KTHWD_ARGS=…  further arguments of kthwd, separated by spaces
//
// # What it does not show
//
// Clients, balancer and backend share the processors: a balancer that uses less CPU
// leaves more to the others, so the rates are those of the whole chain and differ less
// than the balancers do. No data crosses a network card: segments have up to 64 KiB, none
// is lost, and the round trip takes some microseconds. There is no TLS, because the
// balancers do not handle it; a real connection costs the API server about a millisecond
// of handshake, with any balancer. The added latency is the difference of percentiles of
// two distributions, not a percentile of differences. The memory figures exclude kernel
// memory (sockets, and the pipes of splicing balancers); the pipes are counted.
package benchlb
