package main

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// The help of kthwd fits on a screen, and leaves no verb out.
func TestHelpIsOneScreen(t *testing.T) {
	const lines, columns = 40, 80
	var out bytes.Buffer
	a := newApp(&out, &out)
	if code := a.run(context.Background(), []string{"--help"}); code != 0 {
		t.Fatalf("exit code %d\n%s", code, out.String())
	}
	if n := strings.Count(out.String(), "\n"); n > lines {
		t.Errorf("%d lines, want %d at most", n, lines)
	}
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > columns {
			t.Errorf("%d columns, want %d at most: %s", n, columns, line)
		}
	}
	root := newApp(&out, &out).newRoot()
	for _, verb := range leaves(root) {
		if !namedIn(out.String(), verb) {
			t.Errorf("the help lacks the verb %q", verb.CommandPath())
		}
	}
}

// namedIn says whether a line of the help is the verb's own, or is its parent's and names it.
func namedIn(help string, verb *cobra.Command) bool {
	name := strings.TrimPrefix(verb.CommandPath(), "kthwd ")
	if strings.Contains(help, "\n  "+name+"  ") {
		return true
	}
	for i, r := range name {
		if r != ' ' {
			continue
		}
		for line := range strings.Lines(help) {
			below, found := strings.CutPrefix(line, "  "+name[:i]+" VERB ")
			if found && slices.Contains(strings.Split(strings.TrimSpace(below), ", "), name[i+1:]) {
				return true
			}
		}
	}
	return false
}

// Each verb explains itself, by kthwd help VERB as by kthwd VERB --help.
func TestHelpOfEveryVerb(t *testing.T) {
	for _, verb := range leaves(newApp(io.Discard, io.Discard).newRoot()) {
		path := strings.Fields(strings.TrimPrefix(verb.CommandPath(), "kthwd "))
		var topic, flag bytes.Buffer
		if code := newApp(&topic, &topic).run(context.Background(), append([]string{"help"}, path...)); code != 0 {
			t.Errorf("kthwd help %s: exit code %d", strings.Join(path, " "), code)
		}
		newApp(&flag, &flag).run(context.Background(), append(path, "--help"))
		if topic.String() != flag.String() || !strings.Contains(topic.String(), "Usage:\n  "+verb.CommandPath()) {
			t.Errorf("kthwd help %s:\n%s\nwith --help:\n%s", strings.Join(path, " "), topic.String(), flag.String())
		}
	}
}

// leaves are the visible verbs without verbs below them.
func leaves(cmd *cobra.Command) (all []*cobra.Command) {
	for _, c := range cmd.Commands() {
		switch {
		case c.Hidden:
		case c.HasSubCommands():
			all = append(all, leaves(c)...)
		default:
			all = append(all, c)
		}
	}
	return all
}
