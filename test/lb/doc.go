// Package lb makes a load balancer's surroundings fail, and the balancer
// itself, and tells what clients notice: the failure table of kthwd --role=lb.
//
//	make test-e2e                                              # kthwd is held to its targets
//	make test-lb-peers                                         # nginx and HAProxy through the same script, beside it
//	KTHWD_LB_ROWS=2,6 make test-lb-peers                       # these rows only
//	KTHWD_LB_BIN=PROGRAM KTHWD_E2E=1 go test -v ./test/lb      # a program that takes the same flags
//
// It needs root, and ip of iproute2; it is skipped with the reason otherwise. It
// prints a table and one line of JSON that begins with {"table":"kthwd-lb-failures".
// What kthwd does is judged; what the others do is recorded.
//
// # How it is done
//
// Each row has three backends, clients and the balancer in network namespaces
// of their own, joined by a bridge; four rows run at a time. Nothing leaves
// them. A backend is a TLS server in a process of its own, which answers
// /readyz, short requests and watches. Client A makes new TLS connections at a
// fixed rate, usually 20 a second, with one request each and 10 s of patience.
// Client B holds long streams: beating ones get a line each second, idle ones
// nothing, and talking ones send a line each second.
//
//	1    a backend is killed with SIGKILL
//	2    a backend's link is down: nothing is answered, nothing is refused
//	     (neighbours are fixed, so that ARP does not report the host after 3 s)
//	3    SIGSTOP of a backend: its kernel accepts, and nothing more comes
//	4    a backend is there for 2 s and refuses for 2 s, for a minute
//	5    all are killed, one comes back after 12 s; 5b: all say not ready
//	6    each is restarted in turn: /readyz fails, 5 s later it stops, and comes back
//	7a   a backend is added, another removed; 7b: the balancer is replaced twice,
//	     with 1000 watches
//	9a   1000 clients that send nothing; 9b: 300 clients and 200 descriptors
//	10   30 clients vanish: their link is down
//	11   SIGSTOP of the balancer for 3 s
//
// Row 8, idle connections, is a part of test/benchlb.
//
// nginx has the guide's configuration and its defaults. HAProxy has checks of
// /readyz over TLS, option redispatch, and the timeouts that it asks for: 5 s to
// connect, an hour of silence. Replacing nginx is its reload, and HAProxy's the
// start of a new worker by its master: what matters to connections is the same as
// in an upgrade of the program.
//
// # What the figures mean
//
// A request counts from the moment it was begun. Those that were under way when
// a fault began are left out where the fault takes what was sent with it (1, 2,
// 4): no balancer can repeat a request that it does not understand. "Begun after"
// is counted from the fault. A time that says "> 20 s" was waited for that long.
// A delay of data is the longest time from a line's being sent by the backend
// until the client has it.
//
// Counts are asserted as they are. Times are asserted with room for a busy
// machine, and printed as they were: a row that reaches 5.2 s of 5 s passes, and
// shows it.
//
// # What it does not say
//
// The backends are no API servers: they hold no state, their restart takes
// milliseconds, and their /readyz costs nothing. Clients do not use HTTP/2, nor
// retry as client-go does. One balancer is tested; its address moving to another
// machine is not. Round trips take microseconds, so that what is added by a
// balancer that waits for a round trip is not seen.
package lb
