// Package cause knows the causes behind errors of etcd, of Kubernetes and of the kernel:
// a sentence for people and a command that removes the cause.
//
//	c, ok := cause.Of(err.Error(), cause.Names{Kubeconfig: "/var/lib/kubernetes/admin.kubeconfig"})
//	// c.Kind "webhook", c.Text "the admission webhook … refuses requests", c.Do "kubectl … delete …"
//
// Of works on an error's text, because most errors reach kthwd as lines of a log. The
// words that it looks for are upstream's own: TestUpstreamWords holds them to the sources
// of the versions in go.mod, and the tests of this package to real errors where Go's
// standard library makes them. An error that matches no row has no known cause: its text
// is then the best that can be said.
//
// The package changes nothing, and asks nobody.
package cause

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Cause is the known cause of an error.
type Cause struct {
	Kind    string // one word, for metrics and scripts; see Kinds
	Text    string // a clause without a full stop: "the admission webhook … does not answer"
	Public  string // Text without the parts that come from elsewhere, for answers that everybody can get
	Do      string // a command that can be typed as it stands, or advice
	Lasting bool   // the cause is a fault even while the program that reports it works
	Named   bool   // Text names the object at fault
}

// Names is what a process knows about its cluster beyond the text of an error. The zero
// value is valid.
type Names struct {
	Kubeconfig string              // the administrator's, for commands; empty for kubectl's default
	Dir        string              // the data directory, for kthwd's verbs; empty for their default
	Unit       string              // systemd's; empty means kthwd-controller
	LogFlag    string              // names the directory of etcd's log; empty means --etcd-data-dir
	Webhooks   map[string][]string // by the name of a webhook: its configurations, as kubectl delete takes them
}

// maxText bounds a clause. The explanation of a webhook can have any length.
const maxText = 400

// Of returns the cause of an error with this text. ok is false for an unknown one.
func Of(text string, names Names) (c Cause, ok bool) {
	for _, r := range rows() {
		if !strings.Contains(text, r.words) {
			continue
		}
		at := r.pattern.FindStringSubmatchIndex(text)
		if at == nil {
			continue
		}
		fill := func(template string) string { return string(r.pattern.ExpandString(nil, template, text, at)) }
		c := Cause{Kind: r.kind, Text: cut(fill(r.text)), Public: cut(fill(r.public)), Do: names.command(fill(r.do)), Lasting: r.lasting, Named: r.pattern.NumSubexp() > 0}
		if r.name != nil {
			c = r.name(c, names, fill("$1"))
		}
		return c, true
	}
	return Cause{}, false
}

// Kind returns the kind of the cause of an error, and otherwise when it has no known cause.
func Kind(err error, otherwise string) string {
	if c, ok := Of(err.Error(), Names{}); ok {
		return c.Kind
	}
	return otherwise
}

// IsRoutine reports whether a line that upstream logs as an error keeps nothing from working,
// so that it is no cause of anything.
func IsRoutine(text string) bool {
	for _, words := range routineErrors {
		if strings.Contains(text, words) {
			return true
		}
	}
	return noWatchLeft.MatchString(text)
}

// Kthwd is the command line of a verb of kthwd's that asks the process or its files.
func (n Names) Kthwd(verb string) string {
	if n.Dir == "" {
		return "kthwd " + verb
	}
	return "kthwd " + verb + " --data-dir=" + quoted(n.Dir)
}

// UnitName is the name of systemd's unit.
func (n Names) UnitName() string { return cmp.Or(n.Unit, ownUnit) }

// command completes a command of the table: with the administrator's kubeconfig, the data
// directory or the unit.
func (n Names) command(do string) string {
	if n.Kubeconfig != "" {
		do = strings.ReplaceAll(do, "kubectl ", "kubectl --kubeconfig="+quoted(n.Kubeconfig)+" ")
	}
	if verb, ok := strings.CutPrefix(do, "kthwd "); ok {
		do = n.Kthwd(verb)
	}
	return strings.ReplaceAll(do, ownUnit, n.UnitName())
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:@%+=-]+$`)

// quoted makes a path safe in a shell line.
func quoted(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func cut(s string) string {
	s = strings.TrimRight(strings.TrimSpace(s), ": ") // without a name that the error does not have
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}

// row is one known cause.
type row struct {
	words   string // of upstream: an error with this cause contains them
	match   string // regular expression whose groups fill text and do; empty if the words suffice
	kind    string
	text    string
	public  string // empty: text without what it has in brackets at its end
	do      string
	lasting bool
	name    func(c Cause, n Names, first string) Cause // completes c from the first group; nil for most

	pattern *regexp.Regexp
}

// rows compiles the table once.
var rows = sync.OnceValue(func() []row {
	all := make([]row, len(knownCauses))
	for i, r := range knownCauses {
		if r.match == "" {
			r.match = regexp.QuoteMeta(r.words)
		}
		if r.public == "" {
			r.public, _, _ = strings.Cut(r.text, " ($")
		}
		r.pattern = regexp.MustCompile(r.match)
		all[i] = r
	}
	return all
})

// ofWebhook names the command that deletes a webhook's configuration. Where several have one
// of that name, the error does not say which.
func ofWebhook(c Cause, n Names, webhook string) Cause {
	switch all := n.Webhooks[webhook]; len(all) {
	case 0:
	case 1:
		c.Do = n.command("kubectl delete " + all[0])
	default:
		all = slices.Sorted(slices.Values(all)) // a cache has no order
		c.Do = n.command("kubectl get "+strings.Join(all, " ")+" -o yaml") + "; delete the one at fault"
	}
	return c
}

// ofKey names the object behind a key of etcd: "/registry/secrets/shop/pw" is "secret shop/pw".
func ofKey(c Cause, _ Names, key string) Cause {
	parts := strings.Split(strings.Trim(key, "/"), "/")
	if len(parts) < 3 {
		return c
	}
	// The first part is --etcd-prefix; resources outside the core group have their group next.
	resource, rest := parts[1], parts[2:]
	if strings.Contains(resource, ".") && len(rest) > 1 {
		resource, rest = rest[0], rest[1:]
	}
	c.Text = strings.Replace(c.Text, key, strings.TrimSuffix(resource, "s")+" "+strings.Join(rest, "/"), 1)
	return c
}
