// gopanic: a Go program with goroutines, without symbols, that aborts: gopanic panic|nil|deadlock.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
)

type order struct{ number int }

//go:noinline
func worker(c chan int) { <-c }

//go:noinline
func place(o *order, how string) {
	if how == "panic" {
		panic(fmt.Errorf("no order %d", 7))
	}
	o.number++
}

// How many goroutines wait for the channel that never was.
func waiting() int {
	text := make([]byte, 1<<16)
	return strings.Count(string(text[:runtime.Stack(text, true)]), "[chan receive (nil chan)")
}

func main() {
	debug.SetTraceback("crash") // as GOTRACEBACK=crash: it aborts, and does not exit with 2
	var never chan int
	for i := 0; i < 20; i++ {
		go worker(never)
	}
	for waiting() < 20 {
		runtime.Gosched()
	}
	fmt.Println("ready")
	var line string
	fmt.Scanln(&line)
	if os.Args[1] == "deadlock" {
		worker(never)
	}
	place(nil, os.Args[1])
}
