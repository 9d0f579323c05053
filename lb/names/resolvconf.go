package names

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// resolvConf is the file that says which servers Go's resolver asks, and how long each.
const resolvConf = "/etc/resolv.conf"

// The limits of one question. The least is that of Go's resolver for one server.
const (
	leastLimit = 5 * time.Second
	mostLimit  = 30 * time.Second
)

// limitOf returns the time that Go's resolver may take to ask every server in a file as often
// as that says. Ended sooner, a look-up would never reach the second server while the first
// is silent.
func limitOf(file string) time.Duration {
	text, _ := os.ReadFile(file) // without it there are the defaults
	return min(max(leastLimit, limitIn(string(text))), mostLimit)
}

// limitIn reads a resolv.conf as net/dnsconfig_unix.go does.
func limitIn(text string) time.Duration {
	servers, attempts, timeout := 0, 2, 5
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) < 2:
		case words[0] == "nameserver":
			if _, err := netip.ParseAddr(words[1]); err == nil {
				servers++
			}
		case words[0] == "options":
			for _, option := range words[1:] {
				name, value, _ := strings.Cut(option, ":")
				n, err := strconv.Atoi(value)
				if n = min(max(n, 1), 60); err != nil {
					continue
				}
				switch name {
				case "timeout":
					timeout = n
				case "attempts":
					attempts = n
				}
			}
		}
	}
	if servers == 0 {
		servers = 2 // Go asks 127.0.0.1 and ::1
	}
	return time.Duration(min(servers, 3)*attempts*timeout) * time.Second
}
