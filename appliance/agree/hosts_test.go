package agree

import (
	"slices"
	"testing"
)

// The hosts of all controllers are those here and those in the records, each once; a record of an
// older kthwd has none.
func TestHosts(t *testing.T) {
	all := map[string]record{"c0": {Hosts: []string{"127.0.0.1", "c0.example.com"}}, "c1": {Hosts: []string{"127.0.0.1", "c1.example.com"}}, "c2": {}}
	here := []string{"127.0.0.1", "new.example.com"}
	if got, want := hosts(all, here), []string{"127.0.0.1", "c0.example.com", "c1.example.com", "new.example.com"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if here[1] != "new.example.com" {
		t.Error("the list of this controller has changed")
	}
}
