package observe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"kthwd/test/kthwtest"
)

// browser is a tab of Debian's Chromium, which fails the test when the page logs an
// error or breaks its own policy.
func browser(t *testing.T, more ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	chromium := tool(t, "chromium", "chromium")
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), slices.Concat(chromedp.DefaultExecAllocatorOptions[:], []chromedp.ExecAllocatorOption{chromedp.ExecPath(chromium), chromedp.NoSandbox}, more)...)
	t.Cleanup(cancel)
	tab, closeTab := chromedp.NewContext(ctx)
	t.Cleanup(closeTab)
	// The context of the first action is the browser's: it has no deadline.
	if err := chromedp.Do(tab, chromedp.Navigate("about:blank")); err != nil {
		t.Fatal(err)
	}
	if err := chromedp.Listen(tab, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("the page: %v", e.ExceptionDetails)
		case *runtime.EventConsoleAPICalled:
			t.Errorf("the page logs: %v", e.Args)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return tab
}

func do(t *testing.T, tab context.Context, what string, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(tab, time.Minute)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// get is the value of an action.
func get[T any](t *testing.T, tab context.Context, what string, action chromedp.Action[T]) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(tab, time.Minute)
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return v
}

// screens are the sizes and colours that the page is looked at in.
var screens = []struct {
	name          string
	width, height int64
	scheme        string
}{
	{"wide-light", 1280, 800, "light"}, {"narrow-light", 390, 844, "light"},
	{"wide-dark", 1280, 800, "dark"}, {"narrow-dark", 390, 844, "dark"},
}

func scheme(name string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}}})
		return err
	})
}

// withoutScript switches JavaScript off for the next page.
func withoutScript() chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return err
	})
}

// twoBackends is a load balancer in front of two backends of the test's own.
func twoBackends(t *testing.T) (lb *kthwtest.Controller, backends [2]*backend) {
	t.Helper()
	backends = [2]*backend{startBackend(t), startBackend(t)}
	return balance(t, []string{backends[0].address, backends[1].address}, "check: tcp", "slow-start: 0s"), backends
}

// TestStatusPage opens the page of a load balancer, kills a backend and sees the page
// tell so, with JavaScript and without.
func TestStatusPage(t *testing.T) {
	needE2E(t)
	t.Parallel()
	tab := browser(t)
	lb, backends := twoBackends(t)
	state := func(b *backend) string {
		return get(t, tab, "read the state of "+b.address, chromedp.Evaluate[string](fmt.Sprintf(
			`(Array.from(document.querySelectorAll("#backends tbody tr")).find(r => r.cells[0].textContent === %q) || {cells: [0, {textContent: "no row"}]}).cells[1].textContent`, b.address)))
	}
	await := func(b *backend, want string) {
		t.Helper()
		kthwtest.WaitFor(t, b.address+" "+want+" on the page", kthwtest.Soon, func() error {
			if got := state(b); got != want {
				return errors.New(got)
			}
			return nil
		})
	}
	do(t, tab, "open the page", chromedp.Navigate(metricsURL(lb, "/")), chromedp.WaitVisible("#backends"))
	get(t, tab, "mark the document", chromedp.Evaluate[string](`window.stays = "there"`))
	await(backends[0], "ready")
	await(backends[1], "ready")
	backends[0].stop()
	await(backends[0], "dead")
	await(backends[1], "ready")
	backends[0].start(t)
	await(backends[0], "ready")
	stays := get(t, tab, "the same document", chromedp.Evaluate[string](`window.stays || "loaded anew"`))
	title := get(t, tab, "the title", chromedp.Title())
	if stays != "there" || !strings.HasPrefix(title, "kthwd") {
		t.Errorf("got %q, title %q: want the page to have changed in place", stays, title)
	}
	do(t, tab, "click /status.json", chromedp.Click(`a[href="/status.json"]`), chromedp.WaitVisible("pre"))
	body := get(t, tab, "read it", chromedp.Text("pre"))
	if !json.Valid([]byte(body)) || !strings.Contains(body, backends[0].address) {
		t.Errorf("/status.json: got %.200s", body)
	}

	do(t, tab, "without JavaScript", withoutScript(), chromedp.Navigate(metricsURL(lb, "/")), chromedp.WaitVisible("#backends"))
	backends[1].stop()
	await(backends[1], "dead")
}

// TestAccessibility has axe-core look at both pages in each form, and the page fit
// the screen.
func TestAccessibility(t *testing.T) {
	needE2E(t)
	t.Parallel()
	axe := axeCore(t)
	tab := browser(t)
	c := kthwtest.Start(t, kthwtest.Options{})
	lb, backends := twoBackends(t)
	backends[1].stop()
	for _, process := range []*kthwtest.Controller{c, lb} {
		for _, s := range screens {
			do(t, tab, s.name, chromedp.EmulateViewport(s.width, s.height), scheme(s.scheme), chromedp.Navigate(metricsURL(process, "/")), chromedp.WaitVisible("#main"))
			overflow := get(t, tab, "the width", chromedp.Evaluate[int](`document.documentElement.scrollWidth - window.innerWidth`))
			get(t, tab, "axe-core", chromedp.Evaluate[int](axe))
			violations := get(t, tab, "axe-core's verdict", chromedp.Evaluate[[]struct{ ID, Impact, Help string }](
				`axe.run().then(r => r.violations.map(v => ({ID: v.id, Impact: v.impact, Help: v.help + ": " + v.nodes.map(n => n.html).join(" ").slice(0, 300)})))`, chromedp.EvalAwaitPromise))
			if overflow > 0 {
				t.Errorf("%s: the page is %d pixels too wide", s.name, overflow)
			}
			for _, v := range violations {
				if v.Impact == "serious" || v.Impact == "critical" {
					t.Errorf("%s: %s: %s (%s)", s.name, v.ID, v.Help, v.Impact)
				}
			}
		}
	}
}

// axeCore fetches axe-core with npm, which holds it to the sum in package-lock.json.
func axeCore(t *testing.T) string {
	t.Helper()
	npm := tool(t, "npm", "npm")
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/axe")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		lacks(t, "npm ci: %v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, "node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text) + "; 0"
}

// TestScreenshots makes the pictures of docs/images: make screenshots.
func TestScreenshots(t *testing.T) {
	if os.Getenv("KTHWD_SCREENSHOTS") == "" {
		t.Skip("part of make screenshots")
	}
	tab := browser(t)
	c := kthwtest.Start(t, kthwtest.Options{})
	lb, backends := twoBackends(t)
	backends[1].stop()
	kthwtest.WaitFor(t, "a dead backend", kthwtest.Soon, func() error {
		if r, err := lb.Status(); err != nil || r.LB.Backends[1].State != "dead" {
			return errors.Join(errors.New("the backend is not dead yet"), err)
		}
		return nil
	})
	for name, process := range map[string]*kthwtest.Controller{"controller": c, "lb": lb} {
		for _, s := range screens {
			do(t, tab, s.name, chromedp.EmulateViewport(s.width, s.height), scheme(s.scheme), chromedp.Navigate(metricsURL(process, "/")), chromedp.WaitVisible("#main"))
			shot := get(t, tab, "the picture", chromedp.CaptureScreenshot())
			path := filepath.Join("../../docs/images", "status-"+name+"-"+s.name+".png")
			if err := os.WriteFile(path, small(t, shot), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// small makes a PNG of the 64 colours that a screenshot has most of.
func small(t *testing.T, shot []byte) []byte {
	t.Helper()
	from, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		t.Fatal(err)
	}
	count := map[color.RGBA]int{}
	at := func(x, y int) color.RGBA { return color.RGBAModel.Convert(from.At(x, y)).(color.RGBA) }
	bounds := from.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			count[at(x, y)]++
		}
	}
	var most []color.RGBA
	for c := range count {
		most = append(most, c)
	}
	slices.SortFunc(most, func(a, b color.RGBA) int { return count[b] - count[a] })
	var palette color.Palette
	for _, c := range most[:min(len(most), 64)] {
		palette = append(palette, c)
	}
	to := image.NewPaletted(bounds, palette)
	nearest := map[color.RGBA]uint8{}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			c := at(x, y)
			i, known := nearest[c]
			if !known {
				i = uint8(palette.Index(c))
				nearest[c] = i
			}
			to.SetColorIndex(x, y, i)
		}
	}
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&b, to); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
