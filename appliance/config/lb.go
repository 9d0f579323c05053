package config

import (
	"errors"
	"reflect"
	"regexp"
	"slices"

	"kthwd/lb"
)

// lbProblems are those of package lb, in the words of flags and keys.
func lbProblems(c lb.Config) (problems []*Problem) {
	for _, p := range c.Problems() {
		problems = append(problems, fromLB(p))
	}
	return problems
}

// fromLB names the flag where package lb names a field.
func fromLB(p *lb.Problem) *Problem {
	keys := lbKeys()
	name := func(field string) string {
		if key, ok := keys[field]; ok {
			return "--" + key
		}
		return field
	}
	return &Problem{
		Key:  keys[p.Field],
		Text: aField.ReplaceAllStringFunc(p.Text, name),
		Hint: aField.ReplaceAllStringFunc(p.Hint, name),
	}
}

// aField is what names of fields look like, among other words.
var aField = regexp.MustCompile(`\b[A-Z][a-zA-Z]+\b`)

// lbKeys are the names of settings by the field of lb.Config that each is bound to.
func lbKeys() map[string]string {
	l := NewLoader()
	c := reflect.ValueOf(&l.Config.LB).Elem()
	keys := map[string]string{}
	for i := range c.NumField() {
		for _, s := range l.table {
			if reflect.ValueOf(s.value).Pointer() == c.Field(i).Addr().Pointer() {
				keys[c.Type().Field(i).Name] = s.name
			}
		}
	}
	return keys
}

// lbListeners are those that can be read; the others are problems already.
func lbListeners(c lb.Config) (all []listener) {
	for i, l := range c.Listen {
		if slices.Contains(c.Listen[:i], l) {
			continue // so is this
		}
		if host, port, problem := splitAddress(l); problem == "" {
			all = append(all, listener{"listen", []string{host}, port})
		}
	}
	return all
}

// Locate makes *Problems of the *lb.Problems that are joined in err, and gives
// each *Problem where its value was written. It leaves other errors as they are.
func (l *Loader) Locate(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, l.Locate(e))
		}
		return errors.Join(all...)
	}
	switch p := err.(type) {
	case *lb.Problem:
		return l.located([]*Problem{fromLB(p)})
	case *Problem:
		return l.located([]*Problem{p})
	}
	return err
}

// LBWarnings lists what is allowed and probably not meant, one line each.
func LBWarnings(c lb.Config) (lines []string) {
	if c.Check == lb.CheckHTTPS && c.BackendCA == "" {
		lines = append(lines, "the certificates of the backends are not verified by checks: give the cluster's ca.pem with --backend-ca")
	}
	if c.ProxyProtocol != lb.ProxyOff {
		lines = append(lines, "--proxy-protocol "+c.ProxyProtocol+": kube-apiserver does not understand the header, and will answer no client")
	}
	return lines
}
