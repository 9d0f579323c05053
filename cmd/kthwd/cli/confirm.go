package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"kthwd/appliance/advice"
)

// DescribeWayBack prints the commands that put back the data of before a change.
func (a *App) DescribeWayBack(commands []string) {
	if len(commands) == 0 {
		return
	}
	fmt.Fprint(a.Out, "\nTo go back, which gives up all that was written since, stop kthwd here and on each controller that has joined since; then,\n"+
		"as the user to whom the data directory belongs:\n\n")
	for _, command := range commands {
		fmt.Fprintf(a.Out, "  %s\n", command)
	}
}

// Confirm returns nil when a person at the terminal answers yes.
func (a *App) Confirm(ctx context.Context, question string) error {
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return advice.With(Usagef("cannot ask for confirmation: standard input is not a terminal"), "give --yes to continue without confirmation")
	}
	fmt.Fprintf(a.Out, "\n%s Type yes to go on: ", question)
	answer := make(chan string, 1)
	go func() {
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			line = ""
		}
		answer <- strings.TrimSpace(line)
	}()
	select {
	case line := <-answer:
		if line == "yes" {
			return nil
		}
		return errors.New("not confirmed: nothing has changed")
	case <-ctx.Done():
		fmt.Fprintln(a.Out)
		return errors.New("interrupted: nothing has changed")
	}
}
