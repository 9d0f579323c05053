package listening

import (
	"net"
	"net/netip"
	"os"
	"testing"
)

func TestOn(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"} {
		t.Run(address, func(t *testing.T) {
			l, err := net.Listen("tcp", address)
			if err != nil {
				t.Skip(err) // a machine without IPv6
			}
			defer l.Close()
			at := netip.MustParseAddrPort(l.Addr().String())
			all, err := On(int(at.Port()))
			if err != nil {
				t.Fatal(err)
			}
			to := at
			if at.Addr().IsUnspecified() {
				to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port())
			}
			serving := Serving(all, to)
			if len(serving) != 1 || serving[0].UID != os.Geteuid() || serving[0].Inode == 0 {
				t.Errorf("got %+v of %+v, want one socket of this user", serving, all)
			}
			if elsewhere := Serving(all, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.7"), at.Port())); (len(elsewhere) == 1) != at.Addr().IsUnspecified() {
				t.Errorf("at another address: %+v", elsewhere)
			}
		})
	}
}

func TestNothingListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l.Close()
	if all, err := On(port); err != nil || len(all) != 0 {
		t.Errorf("only a connection is left: got %+v, %v", all, err)
	}
}

func TestParse(t *testing.T) {
	const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	const rest = " 00000000:00000000 00:00000000 00000000 "
	for name, bad := range map[string]string{
		"address": "   0: 0100:283C 00000000:0000 0A" + rest + "1000 0 77 1",
		"port":    "   0: 0100007F:X 00000000:0000 0A" + rest + "1000 0 77 1",
		"user":    "   0: 0100007F:283C 00000000:0000 0A" + rest + "-x 0 77 1",
		"inode":   "   0: 0100007F:283C 00000000:0000 0A" + rest + "1000 0 x 1",
	} {
		if got, err := parse(head+bad+"\n", 10300); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
}
