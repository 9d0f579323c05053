// Package benchlb compares kthwd --role=lb with Debian's nginx (the guide's
// stream block), Debian's HAProxy (mode tcp) and a plain tcpproxy.
//
//	make bench-lb                                               # everything, about 12 minutes
//	KTHWD_BENCH_ROUNDS=1 make bench-lb                          # a first look, 1.5 minutes
//	KTHWD_BENCH_ONLY=requests,connections make bench-lb         # a part of it
//	KTHWD_LB_BIN=PROGRAM KTHWD_BENCH_LB=1 go test -v ./test/benchlb # a program that takes the same flags
//
// It prints a table and one line of JSON that begins with {"bench":"kthwd-lb". A
// target that is missed is reported and fails nothing; what breaks fails: a
// connection that is refused, reset or closed while idle.
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
// connections, and so on, the next round beginning with another one. Each turn
// has a network namespace of its own, so that no closed connection of the turn
// before is left in it, a backend with three addresses, and a balancer that was
// just started as user 65534: as root, pipes of 1 MiB are unlimited, and
// balancers that splice are faster than they are in service. All talk through lo.
//
// nginx has one worker a processor, enough worker_connections, no access log,
// and its defaults in everything else. HAProxy has its defaults but for the
// timeouts, which it asks for, and TCP checks. kthwd has --check=tcp, no
// metrics listener and its defaults. tcpproxy is tcpproxy.To one backend.
//
// The load generator and the backend are one thread each, on bare epoll, with
// system calls that Go's scheduler does not see: what they cost is about what a
// C program costs. An exchange is a request of 100 bytes and a response of 1 KiB.
// The parts, by the names that KTHWD_BENCH_ONLY takes, separated by commas:
//
//	requests     64 kept-alive connections, each with the next request on the response
//	connections  64 clients that connect, make one exchange, close, and do it again
//	bulk         one stream; the backend sends from a file in memory, the client
//	             drops the data without copying it
//	idle         10 000 connections (fewer where the descriptor limit is below
//	             20 600; a third of that for tcpproxy) after one exchange, at most
//	             64 being opened at a time; memory is read 3 s after the last
//	latency      requests at a fixed rate, half of what the slowest balancer managed,
//	             over 64 connections; through the balancer and past it, sixteen times in
//	             turns of a quarter of a second; what is told is the median of the turns'
//	             percentiles through the balancer minus the median of those past it
//
// CPU time is user and system time of the balancer with its workers, from the
// first counted request to the last, divided by their number. On loopback the
// kernel delivers what is sent within the sender's time: a balancer's figure
// has the delivery of what it sent, and not of what it received, for all alike.
// It is the figure least disturbed by others who use the machine.
//
// On a machine that others use, more and shorter turns tell more than long ones:
// KTHWD_BENCH_PHASE=1s KTHWD_BENCH_ROUNDS=9. Rates and latencies of a turn during
// which others used the machine (a row of the table) are worth little; the pairs'
// ratios, and CPU times, are worth more.
//
// Settings, all from the environment:
//
//	KTHWD_BENCH_LB=1          run; without it the benchmark is skipped
//	KTHWD_LB_BIN, KTHWD_BIN   kthwd, the first that is set; without, only the others are measured
//	KTHWD_BENCH_ROUNDS=5      rounds
//	KTHWD_BENCH_ONLY=a,b      these parts only
//	KTHWD_BENCH_BALANCERS=a,b of kthwd,nginx,haproxy,tcpproxy these only
//	KTHWD_BENCH_PHASE=3s      how long a part counts, after half a second that does not
//	KTHWD_BENCH_CLIENTS=64    connections of requests, connections and latency
//	KTHWD_BENCH_IDLE=10000    connections of idle
//	KTHWD_BENCH_RATE=N        requests per second of latency; half of what the slowest manages by default
//	KTHWD_BENCH_QUIET=2s      how long to wait for a quiet machine before a turn
//	KTHWD_BENCH_REDO=0        how often to repeat a turn of which others used more than 15 %
//	                          of the machine; the least disturbed try counts
//	KTHWD_BENCH_KTHWD_ARGS=…  further arguments of kthwd, separated by spaces
//
// # What it does not say
//
// Clients, balancer and backend share the processors: a balancer that uses less
// CPU leaves more to the others, so the rates are those of the whole chain, and
// differ less than the balancers do. Nothing crosses a network card: segments
// are of up to 64 KiB, nothing is lost, and the round trip is some microseconds.
// There is no TLS, as the balancers see none of it; a real connection to an API
// server costs it about a millisecond of handshake, which no balancer changes.
// An added latency of percentiles is a difference of two distributions' points,
// not a percentile of differences. Memory of the kernel (sockets, and the pipes
// of splicing balancers) is not in the memory figures; the pipes are counted.
package benchlb
