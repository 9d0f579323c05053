package docs

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

const (
	versioning     = "docs/versioning.md"
	bugTemplate    = ".github/ISSUE_TEMPLATE/bug.md"
	changeTemplate = ".github/PULL_REQUEST_TEMPLATE.md"
)

// TestVersions requires docs/versioning.md and CHANGELOG.md to name the versions in
// go.mod.
func TestVersions(t *testing.T) {
	linked := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^\t(k8s\.io/kubernetes|go\.etcd\.io/etcd/server/v3) (v\S+)$`).FindAllStringSubmatch(read(t, "go.mod"), -1) {
		linked[m[1]] = m[2]
	}
	kubernetes, etcd := linked["k8s.io/kubernetes"], linked["go.etcd.io/etcd/server/v3"]
	table := rows(page{versioning, read(t, versioning)}.section(t, "## What a version contains"))
	if got, want := strings.Join(table[0], " "), strings.Join([]string{"unreleased", kubernetes, etcd}, " "); got != want {
		t.Errorf("%s: the first row is %q, go.mod has %q", versioning, got, want)
	}
	unreleased := page{"CHANGELOG.md", read(t, "CHANGELOG.md")}.section(t, "## Unreleased")
	if want := "Kubernetes " + kubernetes + ", etcd " + etcd + "."; !strings.Contains(unreleased, want) {
		t.Errorf("CHANGELOG.md, Unreleased: lacks %q", want)
	}
}

// TestKeysArePromised requires docs/versioning.md to name every path below /kthwd that
// the sources use, in etcd and over HTTP, and the paths of the join protocol.
func TestKeysArePromised(t *testing.T) {
	promised := page{versioning, read(t, versioning)}.section(t, "## What 0.x promises")
	path := regexp.MustCompile(`"((?:/kthwd/|/v1/)[a-z]+/?)"`)
	found := map[string]bool{}
	for _, file := range sources(t) {
		if strings.HasPrefix(file, "test/") || strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, m := range path.FindAllStringSubmatch(read(t, file), -1) {
			found[m[1]] = true
			if !strings.Contains(promised, "`"+m[1]+"`") {
				t.Errorf("%s uses %s, which %s does not name", file, m[1], versioning)
			}
		}
	}
	if len(found) < 6 {
		t.Errorf("got %v, want the keys and paths that %s names: has their form changed?", found, versioning)
	}
}

// TestNeverSend requires the list of things never to send wherever a page asks for a
// report.
func TestNeverSend(t *testing.T) {
	for _, path := range []string{"CONTRIBUTING.md", "SECURITY.md", bugTemplate} {
		for _, secret := range []string{"-key.pem", ".kubeconfig", "encryption-config.yaml"} {
			if !strings.Contains(read(t, path), secret) {
				t.Errorf("%s does not warn of sending %s", path, secret)
			}
		}
	}
}

// TestDecisions requires each decision to be in the index and to have the four parts of
// the form.
func TestDecisions(t *testing.T) {
	index := read(t, "docs/decisions/README.md")
	all, err := filepath.Glob(filepath.Join(kthwtest.Root(), "docs", "decisions", "0*.md"))
	if err != nil || len(all) < 6 {
		t.Fatalf("got %d decisions, want at least 6 (%v)", len(all), err)
	}
	for _, path := range all {
		name := filepath.Base(path)
		if !strings.Contains(index, "]("+name+")") {
			t.Errorf("the index lacks %s", name)
		}
		p := page{name, read(t, "docs/decisions/"+name)}
		for _, part := range []string{"## Context", "## Decision", "## Consequences", "## Evidence"} {
			if strings.TrimSpace(p.section(t, part)) == "" {
				t.Errorf("%s: nothing under %s", name, part)
			}
		}
	}
}
