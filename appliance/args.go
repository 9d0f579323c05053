package appliance

import (
	"slices"
	"strings"
	"time"
)

// value is what a program makes of a flag that may be given several times.
func value(args []arg, key string) string {
	for _, a := range slices.Backward(args) {
		if a.key == key {
			return a.value
		}
	}
	return ""
}

// arg is one --key=value of an embedded program.
type arg struct{ key, value string }

func (a arg) String() string { return "--" + a.key + "=" + a.value }

func render(args []arg) []string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = a.String()
	}
	return out
}

// override is a flag of kthwd's that the user's pass-through argument replaced.
type override struct{ program, key, ours, users string }

// merge lays the user's arguments over kthwd's. A key that the user gives
// replaces kthwd's wholly, because list flags would otherwise add up.
func merge(program string, ours, users []arg) ([]arg, []override) {
	given := map[string][]string{}
	for _, a := range users {
		given[a.key] = append(given[a.key], a.value)
	}
	var overrides []override
	merged := make([]arg, 0, len(ours)+len(users))
	for _, a := range ours {
		values, replaced := given[a.key]
		if !replaced {
			merged = append(merged, a)
			continue
		}
		if theirs := strings.Join(values, ","); theirs != a.value {
			overrides = append(overrides, override{program, a.key, a.value, theirs})
		}
	}
	return append(merged, users...), overrides
}

// parseUserArgs reads "key=value" pairs; leading dashes are forgiven, a bare key
// means true, as on a command line, and underscores are dashes, as upstream.
func parseUserArgs(raw []string) []arg {
	args := make([]arg, 0, len(raw))
	for _, r := range raw {
		key, value, found := strings.Cut(strings.TrimLeft(r, "-"), "=")
		if !found {
			value = "true"
		}
		// Upstream's parsers take foo_bar for foo-bar, too (component-base/cli/flag/flags.go).
		args = append(args, arg{strings.ReplaceAll(key, "_", "-"), value})
	}
	return args
}

// shutdownDelay is for how long the API server of one controller of several goes on
// serving after its /readyz has begun to fail. kthwd's load balancer looks once a
// second, give or take a tenth, and gives an answer a second: the look that finds
// out has ended after 2.1 s. Later than that it sends no new connection here.
const shutdownDelay = 3 * time.Second
