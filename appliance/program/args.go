package program

import (
	"slices"
	"strings"
	"time"
)

// Value is the value that a program uses for a flag that may be given several times.
func Value(args []Arg, key string) string {
	for _, a := range slices.Backward(args) {
		if a.Key == key {
			return a.Value
		}
	}
	return ""
}

// Values are all values of a flag that may be given several times, in their order.
func Values(args []Arg, key string) (all []string) {
	for _, a := range args {
		if a.Key == key {
			all = append(all, a.Value)
		}
	}
	return all
}

// Arg is one --key=value of an embedded program.
type Arg struct{ Key, Value string }

func (a Arg) String() string { return "--" + a.Key + "=" + a.Value }

// Render returns the arguments as a command line.
func Render(args []Arg) []string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = a.String()
	}
	return out
}

// Override is one of kthwd's flags that the user's pass-through argument replaced.
type Override struct{ Program, Key, Ours, Users string }

// Merge overrides kthwd's arguments with the user's. A key that the user gives
// replaces all of kthwd's values for it, because list flags would otherwise add up. A
// flag of kthwd's that excludes one of the user's gives way, and one that the user has
// taken out is left out: see Removed.
func Merge(program string, ours, users []Arg) ([]Arg, []Override) {
	ours, overrides := giveWay(program, ours, users)
	users = slices.DeleteFunc(slices.Clone(users), func(u Arg) bool { _, is := u.Removed(); return is })
	given := map[string][]string{}
	for _, a := range users {
		given[a.Key] = append(given[a.Key], a.Value)
	}
	merged := make([]Arg, 0, len(ours)+len(users))
	for _, a := range ours {
		values, replaced := given[a.Key]
		if !replaced {
			merged = append(merged, a)
			continue
		}
		if theirs := strings.Join(values, ","); theirs != a.Value {
			overrides = append(overrides, Override{program, a.Key, a.Value, theirs})
		}
	}
	return append(merged, users...), overrides
}

// ParseUser reads "key=value" pairs. Leading dashes are allowed, a bare key means
// true, as on a command line, and underscores count as dashes, as they do upstream. A bare
// key with a minus at its end takes the flag out.
func ParseUser(raw []string) []Arg {
	args := make([]Arg, 0, len(raw))
	for _, r := range raw {
		key, value, found := strings.Cut(strings.TrimLeft(r, "-"), "=")
		if !found && !strings.HasSuffix(key, "-") {
			value = "true"
		}
		// Upstream's parsers read foo_bar as foo-bar, too (component-base/cli/flag/flags.go).
		args = append(args, Arg{strings.ReplaceAll(key, "_", "-"), value})
	}
	return args
}

// shutdownDelay is how long the API server of one controller of several continues to
// serve after its /readyz has begun to fail. kthwd's load balancer checks once a
// second, give or take a tenth, and waits up to a second for the answer: the check
// that notices has ended after 2.1 s. After that it sends no new connection here.
const shutdownDelay = 3 * time.Second
