package status

import (
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
)

// A server may be anybody's: no string of its report reaches the terminal with a
// control or format character in it, or as a line of its own.
func TestTablesEscapeEveryString(t *testing.T) {
	const evil = "ev\x1b]0;pwned\x07\u202e\r\nready"
	for _, tt := range []struct {
		name  string
		spare func(*Report)
	}{
		{"controller", func(r *Report) { r.LB = nil }},
		{"load balancer", func(r *Report) { r.Kubernetes = "" }},
		{"both", func(*Report) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var r Report
			fill(reflect.ValueOf(&r).Elem(), evil)
			tt.spare(&r)
			var b strings.Builder
			if err := WriteWide(&b, r, time.Now(), false, 100); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(b.String(), "ev ]0;pwned ready") {
				t.Errorf("no string of the report is in the table:\n%s", b.String())
			}
			for line := range strings.Lines(b.String()) {
				line = strings.TrimSuffix(line, "\n")
				if strings.IndexFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
					t.Errorf("not printable: %q", line)
				}
				if line == "ready" && !r.Ready {
					t.Errorf("a line that the server made up: %q", line)
				}
			}
		})
	}
}

// fill sets every string within v, and gives every slice and pointer one element.
func fill(v reflect.Value, s string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), s)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), s)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i), s)
			}
		}
	}
}
